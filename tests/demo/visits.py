"""What visitors send to the page in tests, and what an answer names."""

CAT = [1, "", 0, "emoji-sd", "cat", "", "rayleigh", False, ""]
LOOK = ["emoji-sd", "cat", "", "rayleigh", False, ""]


def paths_of(message):
    """All files that an answer of the queue names."""
    found = []

    def walk(value):
        if isinstance(value, dict):
            if isinstance(value.get("path"), str):
                found.append(value["path"])
            value = list(value.values())
        if isinstance(value, list):
            for v in value:
                walk(v)

    walk(message)
    return found
