"""Names from outside as text: of layers, runs, machines, files, on a terminal, in a message, in a figure."""


def escape(name: object, most: int = 200) -> str:
    r"""Makes a name text of one line: control characters, marks of direction and the like become escapes.

    Args:
      name: any text, or a path.
      most: characters of the result; of a longer name the middle is left out.

    >>> escape("edge\n\x1b[2J"), escape("blocks.0.conv" * 9, 20)
    ('edge\\n\\x1b[2J', 'blocks.0.…cks.0.conv')
    """
    return shorten(escape_letters(shorten(str(name), most)), most)


def escape_letters(text: str) -> str:
    r"""Writes letters that cannot be printed as escapes, whatever the length that makes.

    >>> escape_letters("a\x1b")
    'a\\x1b'
    """
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def shorten(text: str, most: int) -> str:
    """Leaves out the middle of a text of more than so many characters.

    >>> shorten("depthwise", 5), shorten("dense", 5)
    ('d…se', 'dense')
    """
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most // 2) :]}"
