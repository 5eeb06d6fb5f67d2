"""Which LoRA is the subject and which the style, for methods that treat the two differently."""

from __future__ import annotations

from collections.abc import Sequence

SUBJECT, STYLE = "subject", "style"


def assign_roles(known: Sequence[str | None], swap: bool = False) -> list[str]:
    """A role for every LoRA, in order. ``known`` are the retriever's; anything but subject and style is unknown.

    Without a subject the first of unknown role is it; the others of unknown role are styles. When all have one role
    after that, the first LoRA keeps subject and the others are styles. ``swap`` exchanges the two at the end.
    """
    roles = [role if role in (SUBJECT, STYLE) else None for role in known]
    if SUBJECT not in roles and None in roles:
        roles[roles.index(None)] = SUBJECT
    roles = [role or STYLE for role in roles]
    if len(set(roles)) == 1:
        roles = [SUBJECT, *[STYLE] * (len(roles) - 1)]
    if swap:
        roles = [STYLE if role == SUBJECT else SUBJECT for role in roles]
    return roles
