"""Things people ask pictures of, none of them special: the ruler against which every LoRA's score is measured.

Short, because they are compared with phrases of a prompt: animals, plants, food, people, places, things, weather,
moods, and about one in five a manner of drawing. A few will fit a LoRA of a given library; means and deviations over
all of them hardly notice.
"""

from __future__ import annotations

_SUBJECTS = """
a dog|a cat|a horse|a cow|a sheep|a chicken|a duck|an owl|a parrot|a goldfish|a shark|a whale|a frog|a snake|a lizard|
a butterfly|a bee|a spider|a snail|a bear|a fox|a wolf|a lion|an elephant|a giraffe|a monkey|a rabbit|a squirrel|
a hedgehog|a crab|a dinosaur|a dragon|a unicorn|a robot|an alien|a ghost|a wizard|a knight|a princess|a pirate|
a fairy|a zombie|a superhero|a baby|a little girl|an old man|a young woman|a bearded man|a portrait of a woman|
a crowd of people|a happy couple|a doctor|a farmer|a cook|a policeman|a teacher|an astronaut|a soldier|a dancer|
a musician|a runner|a tree|a flower|a rose|a cactus|a mushroom|a pumpkin|an apple|a banana|a strawberry|
a slice of pizza|a hamburger|a bowl of soup|a loaf of bread|a birthday cake|an ice cream|a cup of coffee|
a glass of wine|a teapot|a plate of sushi|a cheese board|a car|a truck|a bicycle|a motorcycle|a train|an airplane|
a helicopter|a sailing boat|a rocket|a bus|a tractor|a ship|a house|a cottage|a castle|a skyscraper|a bridge|a church|
a temple|a lighthouse|a windmill|a barn|a tent|a factory|a library|a kitchen|a bedroom|a living room|an office|
a shop window|a busy street|a market square|a city at night|a village|a forest|a mountain|a snowy mountain|a beach|
an island|a desert|a lake|a river|a waterfall|a garden|a field of wheat|a cave|a volcano|the ocean|the night sky|
the moon|a sunset|a rainbow|a thunderstorm|falling snow|autumn leaves|a foggy morning|outer space|a planet|a chair|
a table|a lamp|a clock|a book|a pencil|a guitar|a piano|a violin|a drum|a camera|a telephone|a laptop|a television|
a key|a sword|a crown|a ring|a hat|a pair of shoes|a dress|a backpack|an umbrella|a balloon|a candle|a mirror|
a bottle|a vase|a basket|a box|a gift|a toy|a teddy bear|a ball|a chess board|a map|a flag|a fireplace|a broken heart|
a smiling face|an eye|a hand|a skeleton|a mask|a tattoo|a machine|an engine|a spaceship interior|a computer chip|
a cosy evening|a wedding|a football match|a concert|a picnic|a busy kitchen|a car race|children playing|dusk|
summer holidays|a ruined city|a fantasy landscape|a futuristic city|a medieval town|an underwater scene|an empty room
"""

_MANNERS = """
a drawing|a painting|a photograph|a cartoon|an oil painting|a sketch|a poster|a logo|a sticker|a comic|
a digital illustration|a watercolour|a charcoal drawing|a 3d rendering|a sculpture|a mosaic|a stained glass window|
a woodcut|an engraving|anime style|pop art|abstract art|impressionism|art nouveau|a minimalist design|
a vintage photograph|a black and white picture|a film still|line art|pixel art|paper craft|a clay model|knitted|
graffiti|a technical drawing|a doodle|a silhouette|a collage|low poly|neon colours|pastel colours|dramatic lighting
"""


def _listed(block: str) -> tuple[str, ...]:
    return tuple(" ".join(text.split()) for text in block.split("|") if text.strip())


GENERIC_SUBJECTS = _listed(_SUBJECTS)
GENERIC_MANNERS = _listed(_MANNERS)
GENERIC_PROMPTS = GENERIC_SUBJECTS + GENERIC_MANNERS
