// What the panel asks of ComfyUI's server: pages of rows, on demand, forgotten in turn.

const PAGE = 100;
const HELD = 40; // pages

/** What a route answers. Throws an Error with the server's words. */
export async function ask(api, route, query, signal) {
  const given = Object.entries(query).filter(([, value]) => value !== "" && value !== undefined && value !== null);
  const response = await api.fetchApi(`/autolora/${route}?${new URLSearchParams(given)}`, { signal });
  if (response.ok) return route === "map" ? response.arrayBuffer() : response.json();
  const said = await response.json().catch(() => ({}));
  const words = [said.error ?? `the server answered ${response.status}`, said.fix].filter(Boolean).join("; ");
  throw new Error(`${words[0].toUpperCase()}${words.slice(1)}.`);
}

/** The address of a LoRA's picture. */
export function pictureOf(api, library, hash) {
  return api.apiURL(`/autolora/preview?${new URLSearchParams({ library, hash })}`);
}

/** The rows of one list: read page by page where they are looked at. `heard(answer)` is told of every page. */
export class Pages {
  constructor(api, heard, failed) {
    Object.assign(this, { api, heard, failed, route: "entries", query: {} });
    this.clear();
  }

  clear() {
    for (const asking of this.asking?.values() ?? []) asking.abort();
    Object.assign(this, { asking: new Map(), pages: new Map(), total: 0, wanted: [0, 0] });
  }

  /** Begin another list; nothing of the old one comes any more. */
  show(route, query) {
    this.clear();
    Object.assign(this, { route, query });
    this.#read(0);
  }

  row(index) {
    const page = this.pages.get(Math.floor(index / PAGE));
    return page?.[index % PAGE];
  }

  /** Have rows `first` to `last` read; what is asked for and no longer looked at is given up. */
  want(first, last) {
    const from = Math.floor(first / PAGE);
    const to = Math.floor(Math.max(first, last - 1) / PAGE);
    for (const [page, asking] of this.asking)
      if (page < from || page > to) {
        asking.abort();
        this.asking.delete(page);
      }
    for (let page = from; page <= to; page++) if (page * PAGE < this.total) this.#read(page);
  }

  async #read(page) {
    if (this.pages.has(page)) {
      const rows = this.pages.get(page); // looked at: the last to be forgotten
      this.pages.delete(page);
      this.pages.set(page, rows);
      return;
    }
    if (this.asking.has(page)) return;
    const asking = new AbortController();
    this.asking.set(page, asking);
    try {
      const query = { ...this.query, offset: page * PAGE, limit: PAGE };
      const answer = await ask(this.api, this.route, query, asking.signal);
      if (this.asking.get(page) !== asking) return;
      this.pages.set(page, answer.rows);
      while (this.pages.size > HELD) this.pages.delete(this.pages.keys().next().value);
      this.total = answer.total;
      this.heard(answer, page);
    } catch (error) {
      if (error.name !== "AbortError" && this.asking.get(page) === asking) this.failed(error);
    } finally {
      if (this.asking.get(page) === asking) this.asking.delete(page);
    }
  }
}
