// The map as it comes from the server, and which of its points lies where.

const CELLS = 128;

/** Places `xy` (x and y by turns, −1 to 1; the longer way is down where the map is `tall`), groups `home`, what the
 *  server says of them; `hashOf(i)`, and `extent`: the farthest place from the middle each way. */
export function readPoints(buffer, tall = false) {
  const bytes = new Uint8Array(buffer);
  const length = new DataView(buffer).getUint32(4, true);
  if (String.fromCharCode(...bytes.subarray(0, 4)) !== "ALM1") throw new Error("This is no map that this page can read.");
  const said = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
  let at = 8 + length;
  const xy = new Float32Array(buffer, at, 2 * said.count);
  at += xy.byteLength;
  let extent = extentOf(xy);
  if (extent[0] > extent[1] === tall) {
    for (let i = 0; i < xy.length; i += 2) [xy[i], xy[i + 1]] = [xy[i + 1], xy[i]];
    extent = [extent[1], extent[0]];
  }
  const home = new Uint16Array(buffer, at, said.count);
  at += home.byteLength;
  const hashes = bytes.subarray(at, at + 32 * said.count);
  const hashOf = (i) => Array.from(hashes.subarray(32 * i, 32 * i + 32), (byte) => byte.toString(16).padStart(2, "0")).join("");
  return { ...said, xy, home, hashOf, extent, ...cells(xy, said.count), middles: middles(xy, home, said.labels.length) };
}

function extentOf(xy) {
  const extent = [0.05, 0.05];
  for (let i = 0; i < xy.length; i++) extent[i % 2] = Math.max(extent[i % 2], Math.abs(xy[i]));
  return extent;
}

function cellOf(value) {
  return Math.min(CELLS - 1, Math.max(0, Math.floor(((value + 1) / 2) * CELLS)));
}

// Points by the square of the plane they lie in, so that a look under the pointer looks at few.
function cells(xy, count) {
  const starts = new Uint32Array(CELLS * CELLS + 1);
  const cell = new Uint16Array(count);
  for (let i = 0; i < count; i++) {
    cell[i] = cellOf(xy[2 * i + 1]) * CELLS + cellOf(xy[2 * i]);
    starts[cell[i] + 1]++;
  }
  for (let c = 0; c < CELLS * CELLS; c++) starts[c + 1] += starts[c];
  const next = starts.slice();
  const order = new Uint32Array(count);
  for (let i = 0; i < count; i++) order[next[cell[i]]++] = i;
  return { starts, order };
}

// Where to write a group's name: among its points, not at their mean, which may be nowhere.
function middles(xy, home, groups) {
  return Array.from({ length: groups }, (_, group) => {
    const mine = [];
    for (let i = 0; i < home.length; i++) if (home[i] === group) mine.push(i);
    const some = mine.filter((_, at) => at % Math.ceil(mine.length / 500) === 0);
    const median = (axis) => some.map((i) => xy[2 * i + axis]).sort((a, b) => a - b)[some.length >> 1];
    return some.length ? [median(0), median(1)] : null;
  });
}

/** The point nearest to (x, y) within `reach`, all in the map's units; −1 for none. */
export function nearest({ xy, starts, order }, x, y, reach) {
  let best = -1;
  let least = reach * reach;
  for (let row = cellOf(y - reach); row <= cellOf(y + reach); row++)
    for (let column = cellOf(x - reach); column <= cellOf(x + reach); column++)
      for (let at = starts[row * CELLS + column]; at < starts[row * CELLS + column + 1]; at++) {
        const i = order[at];
        const far = (xy[2 * i] - x) ** 2 + (xy[2 * i + 1] - y) ** 2;
        if (far < least) [best, least] = [i, far];
      }
  return best;
}
