"""A cashier at the page, and the line between the page and the server, which can be cut."""


def checked(digits: str) -> str:
    """Seventeen digits with their check digit."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return digits + str(-total % 10)
