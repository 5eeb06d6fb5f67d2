"""The checkpoint lines of each base and how sidecars, trainers and file names spell them; data only.

A family has one axis or several (Wan: version, task, noise); an axis maps a line's name to a pattern for lower-case
text. The first that is found wins, so the more special one stands first.
"""

from __future__ import annotations

from collections.abc import Mapping

AXES: Mapping[str, tuple[Mapping[str, str], ...]] = {
    "sd15": (
        {
            "anime": r"(?<![a-z])nai(?![a-z])|novelai|animefull|anything|any-?lora|orange_?mix|counterfeit|meinamix",
            "1.5": r"sd ?1\.5|v1-5|1-5-pruned|realistic_?vision|dreamshaper",
        },
    ),
    "sdxl": (
        {
            "noobai": r"noob",
            "illustrious": r"illustrious|(?<![a-z])il-?xl|illuxl|wai-?nsfw|hassakuxl.*il|ntr_?mix",
            "pony": r"pony|pdxl|autismmix",
            "animagine": r"animagine",
            "kolors": r"kolors",
            "base": r"sdxl[ _-]?1\.0|sd_?xl_base|sd_?xl.?v?1\.0|stable-diffusion-xl-base",
        },
    ),
    "sd3": (
        {
            "3.5 large turbo": r"3[._-]?5.{0,3}large.{0,3}turbo",
            "3.5 large": r"3[._-]?5.{0,3}large",
            "3.5 medium": r"3[._-]?5.{0,3}medium",
            "3 medium": r"(sd|stable-diffusion-)v?3[._-]medium|sd ?3$",
        },
    ),
    "flux": (
        {
            "krea": r"krea",
            "kontext": r"kontext",
            "fill": r"fill",
            "schnell": r"schnell|flux\.?1 s$",
            "dev": r"flux.{0,4}dev|flux\.?1 d$",
        },
    ),
    "flux2": (
        {"klein base": r"klein.*base", "klein": r"klein", "dev": r"flux.?2.{0,3}d(ev)?(?![a-z])"},
    ),
    "chroma": ({"radiance": r"radiance", "flash": r"flash", "hd": r"(?<![a-z])hd(?![a-z])"},),
    "qwen_image": (
        {"edit": r"edit|2509|2511", "layered": r"layered", "image": r"qwen[-_ ]?image(?!.*(edit|layered))"},
    ),
    "z_image": ({"de-turbo": r"de-?turbo", "turbo": r"turbo", "base": r"base"},),
    "lumina2": ({"neta": r"neta", "2.0": r"lumina"},),
    "wan": (
        {"2.2": r"2[._]?2", "2.1": r"2[._]?1|wan video (1\.3b|14b)", "2.5": r"2[._]5"},
        {"i2v": r"(?<!t)i2v", "t2v": r"t2v"},
        {
            "high noise": r"high.?noise|(?<![a-z])h(igh|n)(?![a-z])",
            "low noise": r"low.?noise|(?<![a-z])l(ow|n)(?![a-z])",
        },
    ),
    "hunyuan_video": ({"1.5": r"1[._]5"},),
    "ltxv": ({"2.3": r"2\.3", "2": r"ltx.?v?.?2(?![0-9.])", "0.9": r"0\.9|^ltxv$"},),
    "aura_flow": ({"pony v7": r"pony", "auraflow": r"aura_?flow"},),
    "anima": ({"anima": r"anima(?!gine)", "cosmos": r"cosmos"},),
}  # fmt: skip

# Families whose trainers write one name for the architecture, whatever checkpoint was trained on.
SILENT = frozenset({"sd15", "sdxl"})
OF_ARCHITECTURE = r"sdxl_base_v|sdxl_1\.0$|stable-diffusion-|sd_v\d|sd_1\.5$"

# File names are about what is drawn: there a line is believed only in the spellings nobody draws.
FOR_NAMES: Mapping[tuple[str, str], str] = {
    ("sd15", "anime"): "",
    ("sd15", "1.5"): r"(?<![a-z0-9])sd ?_?1[._]?5(?![0-9])",
    ("sdxl", "noobai"): r"noobai|(?<![a-z])noob(?![a-z])",
    ("sdxl", "pony"): r"pdxl|pony[-_ ]?(xl|v6|diffusion)|(?<!little)[-_ ]pony([-_ ]?v?\d+)*(\.[a-z]+)?$",
    ("sdxl", "illustrious"): r"illustrious(xl|[-_ .]|$)|(?<![a-z])il(xl|_?v\d|lu?xl)",
    ("flux", "fill"): r"flux.*(?<![a-z])fill(?![a-z])",
    ("qwen_image", "edit"): r"qwen.*(edit|2509|2511)",
    ("z_image", "base"): r"z[-_ ]?image[-_ ]?base",
    ("chroma", "flash"): r"chroma.*flash",
    ("chroma", "hd"): r"chroma.*(?<![a-z])hd(?![a-z])",
    ("aura_flow", "pony v7"): r"pony.?v?7",
    ("wan", "2.2"): r"wan.{0,8}2[._]?2",
    ("wan", "2.1"): r"wan.{0,8}2[._]?1",
    ("wan", "2.5"): r"wan.{0,8}2[._]?5",
    ("hunyuan_video", "1.5"): r"hunyuan.*1[._]5",
    ("ltxv", "2.3"): r"ltx.*2\.3",
}
