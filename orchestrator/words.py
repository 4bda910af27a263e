"""Words that go with a number."""


def counted(number: int, noun: str) -> str:
    """The number with its noun.

    >>> counted(1, "case"), counted(2, "case")
    ('1 case', '2 cases')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"
