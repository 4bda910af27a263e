"""Flame graphs: which code the time of a generation is spent in, by PyTorch's profiler.

Folded stacks (`a;b;c 12`, microseconds; speedscope and flamegraph.pl read them) and a drawing
that any browser shows: width is time, a frame stands on its caller (Brendan Gregg's form).
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

from torch.profiler import ProfilerActivity, profile

Stack = tuple[str, ...]

_ADDRESS = re.compile(r" of .* object at 0x[0-9a-f]+|/.*/(?=torch/)")
"""What differs from run to run in a frame's name."""
_WIDTH, _ROW, _MARGIN = 1200.0, 17, 24
_COLOURS = ("#e6550d", "#fd8d3c", "#fdae6b", "#f16913", "#fdd0a2", "#d94801")


def profiled(work: Callable[[], object], on_gpu: bool) -> dict[Stack, float]:
    """Return the microseconds of each stack in `work`: of the GPU if there is one, else the CPU."""
    activities = [ProfilerActivity.CPU]
    if on_gpu:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, with_stack=True) as profiler:
        work()
    stacks: dict[Stack, float] = defaultdict(float)
    for event in profiler.events() or ():
        time_us = _self_us(event, on_gpu)
        if time_us > 0 and (stack := _stack(event)):
            stacks[stack] += time_us
    return dict(stacks)


def _self_us(event: Any, on_gpu: bool) -> float:
    if event.device_type.name != "CPU":
        return 0.0  # a GPU kernel: its time is with the operator that launched it
    time_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
    return float(time_us)


def _stack(event: Any) -> Stack:
    """From `generate` down to the event; () for what the profiler does around it."""
    names = []
    while event is not None:
        names.append(_ADDRESS.sub("", event.name))
        event = event.cpu_parent
    names.reverse()
    starts = [index for index, name in enumerate(names) if name.endswith("): generate")]
    return tuple(names[starts[0] :]) if starts else ()


def folded(stacks: Mapping[Stack, float]) -> str:
    """One line per stack."""
    lines = (
        f"{';'.join(name.replace(';', ',') for name in stack)} {round(time_us)}"
        for stack, time_us in sorted(stacks.items())
        if round(time_us)
    )
    return "".join(f"{line}\n" for line in lines)


@dataclass
class _Frame:
    name: str
    time_us: float = 0.0
    inner: dict[str, "_Frame"] = field(default_factory=dict)


def drawn(stacks: Mapping[Stack, float], title: str) -> str:
    """Return the flame graph as an SVG document of its own."""
    root = _tree(stacks)
    if not root.time_us:
        raise ValueError(f"{title}: no time was seen in generate, nothing to draw")
    depth = max(map(len, stacks)) + 1
    height = depth * _ROW + 2 * _MARGIN
    scale = _WIDTH / root.time_us
    body = "\n".join(_boxes(root, 0.0, 0, height - _MARGIN - _ROW, scale, root.time_us))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:.0f} {height}" '
        f'font-family="monospace" font-size="11">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n'
        f'<text x="4" y="15" font-size="13">{escape(title)}</text>\n{body}\n</svg>\n'
    )


def _tree(stacks: Mapping[Stack, float]) -> _Frame:
    root = _Frame("all")
    for stack, time_us in stacks.items():
        frame = root
        frame.time_us += time_us
        for name in stack:
            frame = frame.inner.setdefault(name, _Frame(name))
            frame.time_us += time_us
    return root


def _boxes(
    frame: _Frame, x: float, level: int, bottom: int, scale: float, total_us: float
) -> Iterable[str]:
    width = frame.time_us * scale
    if width < 0.3:
        return  # too narrow to see
    y = bottom - level * _ROW
    share = (
        f"{frame.name}: {frame.time_us / 1000:.3f} ms, {frame.time_us / total_us:.1%}"
    )
    letters = max(0, int(width / 6.7) - 1)
    colour = _COLOURS[sum(map(ord, frame.name)) % len(_COLOURS)]
    yield (
        f"<g><title>{escape(share)}</title>"
        f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{_ROW - 1}" fill="{colour}"/>'
        f'<text x="{x + 3:.2f}" y="{y + 12}">{escape(frame.name[:letters])}</text></g>'
    )
    for inner in frame.inner.values():
        yield from _boxes(inner, x, level + 1, bottom, scale, total_us)
        x += inner.time_us * scale
