"""What the wide-area bench asks: texts whose answers repeat them, and free prose."""

_CODE = """def total(items):
    result = 0
    for item in items:
        result = result + item.price
    return result


def average(items):
    if len(items) == 0:
        return 0
    return total(items) / len(items)


def largest(items):
    best = None
    for item in items:
        if best is None or item.price > best.price:
            best = item
    return best
"""

_MINUTES = (
    "The council met on Tuesday evening in the old town hall. The mayor opened the meeting and "
    "welcomed the new members. The first item was the repair of the bridge over the river Elbe. "
    "The engineer explained that the bridge needs new bearings and that the work will take four "
    "months. The second item was the budget of the public library. The librarian asked for two "
    "more staff. The council agreed to pay for one. The third item was the market square, where "
    "trees will be planted in the spring."
)

_LIST = """Name: Anna Berger, City: Graz, Phone: 555-0101
Name: Boris Klein, City: Linz, Phone: 555-0102
Name: Clara Novak, City: Wien, Phone: 555-0103
Name: David Huber, City: Enns, Phone: 555-0104
Name: Eva Steiner, City: Wels, Phone: 555-0105
"""

_JSON = """{"id": 1, "name": "hammer", "price": 12.5, "stock": 40}
{"id": 2, "name": "screwdriver", "price": 6.0, "stock": 85}
{"id": 3, "name": "pliers", "price": 9.75, "stock": 31}
{"id": 4, "name": "wrench", "price": 14.0, "stock": 22}
"""

REPETITIVE: dict[str, str] = {
    "code, copied": f"The file before:\n```\n{_CODE}```\nThe same file again:\n```\n",
    "code, renamed": f"```\n{_CODE}```\nThe same code with `item` renamed to `product`:\n```\n",
    "minutes, quoted": f"Minutes:\n{_MINUTES}\n\nThe minutes once more, word for word:\n",
    "minutes, summarised": f"{_MINUTES}\n\nSummary: The council met on Tuesday evening in the",
    "list, extracted": f"{_LIST}\nThe same list again:\n{_LIST.splitlines()[0]}\n",
    "JSON, continued": f"{_JSON}",
}

PROSE: dict[str, str] = {
    "sea": "The most beautiful thing about the sea is",
    "letter": "Dear grandmother,\n\nI have been in the mountains for a week now, and",
    "history": "The history of the bicycle begins in",
    "story": "Once upon a time, in a small village at the edge of the forest, there lived",
}
