"""The training-free methods in float64, on whole dense updates: straight from the papers, nothing shared with the pack.

``deltas`` are lists of (out, in) float64 matrices with strengths folded in.
"""

from __future__ import annotations

import torch


def trim_ref(delta: torch.Tensor, density: float) -> torch.Tensor:
    """The ``density`` share of largest magnitudes, by sorting."""
    kept = round(density * delta.numel())
    order = sorted(range(delta.numel()), key=lambda place: -abs(delta.flatten()[place].item()))
    out = torch.zeros(delta.numel(), dtype=torch.float64)
    for place in order[:kept]:
        out[place] = delta.flatten()[place]
    return out.view_as(delta)


def magnitude_ref(deltas: list[torch.Tensor], density: float) -> torch.Tensor:
    return sum(trim_ref(delta, density) for delta in deltas)


def ties_ref(deltas: list[torch.Tensor], density: float, mean: bool = False) -> torch.Tensor:
    """Trim, elect, merge, one number at a time."""
    trimmed = [trim_ref(delta, density).flatten().tolist() for delta in deltas]
    out = []
    for numbers in zip(*trimmed, strict=True):
        total = sum(numbers)
        agreeing = [number for number in numbers if number * total > 0]
        out.append(sum(agreeing) / (len(agreeing) if mean and agreeing else 1))
    return torch.tensor(out, dtype=torch.float64).view_as(deltas[0])


def np_ref(subject: torch.Tensor, style: torch.Tensor, style_down: torch.Tensor, mu: float) -> torch.Tensor:
    """ΔW_s + ΔW_c (I − μ/(1+μ) QQᵀ), Q by thin QR of the style's transposed down matrix."""
    q, _ = torch.linalg.qr(style_down.double().T)
    eye = torch.eye(subject.shape[1], dtype=torch.float64)
    return style + subject @ (eye - mu / (1 + mu) * q @ q.T)


def ssr_ref(downs: list[torch.Tensor], ups: list[torch.Tensor], inputs: list[torch.Tensor]) -> torch.Tensor:
    """B Q G⁻¹ A by a plain inverse; ``inputs`` X_k (in, tokens)."""
    a = torch.cat([down.double() for down in downs])
    b = torch.cat([up.double() for up in ups], 1)
    zs = [a @ x.double() for x in inputs]
    g = sum(z @ z.T for z in zs)
    q = torch.cat([(down.double() @ x.double()) @ z.T for down, x, z in zip(downs, inputs, zs, strict=True)])
    return b @ q @ torch.linalg.inv(g) @ a


def klora_ref(masses: list[tuple[float, float]], progress: float) -> int:
    """0 the subject or 1 the style, from the paper's comparison; masses are (top-K sum, layer's S), γ folded in."""
    (subject, loud_subject), (style, loud_style) = masses
    gamma = loud_subject / loud_style
    return 0 if subject >= style * gamma * (1.5 * progress + 0.5) else 1
