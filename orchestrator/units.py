"""Durations and counts, as people and as Slurm write them."""

import re

_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")


def seconds(text: str) -> int:
    """Return the whole seconds of `30min`, `4 h`, `1.5 d`, or of Slurm's own `1-02:00:00`.

    Raises:
        ValueError: neither.
    """
    as_slurm = slurm_seconds(text)
    return as_slurm if as_slurm is not None else _quantity(text)


def _quantity(text: str) -> int:
    found = _QUANTITY.fullmatch(text)
    if found is None or found[2] not in _SECONDS:
        raise ValueError(
            f"must be a number and a unit ({', '.join(_SECONDS)}), such as '30min', got {text!r}"
        )
    return round(float(found[1]) * _SECONDS[found[2]])


def slurm_time(total_s: int) -> str:
    """Return Slurm's `D-HH:MM:SS`, without days if there are none.

    >>> slurm_time(5400), slurm_time(90061)
    ('01:30:00', '1-01:01:01')
    """
    days, rest = divmod(total_s, 86400)
    clock = f"{rest // 3600:02}:{rest % 3600 // 60:02}:{rest % 60:02}"
    return f"{days}-{clock}" if days else clock


def slurm_seconds(text: str) -> int | None:
    """Seconds of Slurm's `[D-][HH:]MM:SS`; None of `UNLIMITED`, `Partition_Limit`, `INVALID`.

    >>> slurm_seconds("1-02:03:04"), slurm_seconds("5:07"), slurm_seconds("UNLIMITED")
    (93784, 307, None)
    """
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)(?:\.\d+)?", text.strip())
    if found is None:
        return None
    days, hours, minutes, rest = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


def counted(number: int, noun: str) -> str:
    """Return the number with its noun.

    >>> counted(1, "case"), counted(2, "case")
    ('1 case', '2 cases')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"
