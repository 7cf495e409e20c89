"""Files from outside are read whole, or refused in one line."""

import os

import pytest

from haqjax.reading import check_regular, one_line, quote, read_json, read_text, read_yaml


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbflayer,weight_bits\n")
    assert read_text(tmp_path / "a.csv") == "layer,weight_bits\n"


def test_what_is_no_regular_file_is_named_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "folder").mkdir()
    (tmp_path / "long").write_bytes(b"x" * 100)
    for name, reason in {
        "pipe": "is no regular file",
        "loop": "cannot be read: Too many levels of symbolic links",
        "folder": "is a folder",
        "long": "more than the",
        "nothing": "cannot be read: No such file",
    }.items():
        with pytest.raises(ValueError, match=rf"{tmp_path / name} .*{reason}"):
            check_regular(tmp_path / name, 99)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "line 2 has an alias"),
        ("[" * 5000, "nested too deep"),
        ("a: " + "9" * 5000, "no YAML file: .*digits"),
        ("a: [1, 2", "no YAML file"),
        ("? [1, 2]\n: 3\n", "no YAML file"),
        ("a: 1\n" * 20000, "more than the"),
        ("a: 2026-99-99", "no YAML file"),
        ("a: 1\nb: 2\na: 3\n", "line 3 has 'a' again: YAML keeps the last only"),
        ("a: {b: 1, b: 2}", "line 1 has 'b' again"),
        ("a: 010", "line 1 has '010', which is another number in YAML"),  # 8
        ("\na: 1:30", "line 2 has '1:30', which is another number in YAML"),  # 90
        ("a: !!int ''", "no YAML file"),  # of which PyYAML raises an IndexError,
        ("a: !!bool x", "no YAML file"),  # a KeyError,
        ("a: !!timestamp x", "no YAML file"),  # an AttributeError
        ("a: !!python/name:os.system", "no YAML file"),
    ],
)
def test_a_yaml_file_that_cannot_be_read_is_one_short_line(tmp_path, text, reason):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=reason) as error:
        read_yaml(tmp_path / "a.yaml")
    assert str(tmp_path / "a.yaml") in str(error.value)
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, "9" * 5000, "{", "\x00", ""])
def test_a_json_file_that_cannot_be_read_is_one_short_line(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json is no") as error:
        read_json(tmp_path / "a.json")
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


def test_bytes_that_are_no_utf_8_are_told_by_their_place(tmp_path):
    (tmp_path / "a.json").write_bytes(b"{\xff}")
    with pytest.raises(ValueError, match="no UTF-8 text: invalid start byte at byte 1"):
        read_json(tmp_path / "a.json")


def test_values_are_quoted_short_whatever_they_hold():
    nested: list = ["x" * 1000] * 1000
    for _ in range(40):
        nested = [nested] * 10  # written out, it would fill any memory
    for value in (nested, {"a": nested}, "\x1b[2J" * 1000, 10**5000, -(10**5000), object()):
        text = quote(value)
        assert len(text) <= 120 and text.isprintable()
    assert one_line("a\r\n\tb\x00", 20) == "a b\\x00"


def test_plain_numbers_of_yaml_are_what_they_seem(tmp_path):
    (tmp_path / "a.yaml").write_text("a: 0\nb: -10\nc: 1_000\nd: 0x10\ne: 0.5\nf: 007.5\ng: '010'\nh: 2.0e+8\n")
    values = {"a": 0, "b": -10, "c": 1000, "d": 16, "e": 0.5, "f": 7.5, "g": "010", "h": 2e8}
    assert read_yaml(tmp_path / "a.yaml") == values


@pytest.mark.parametrize("name", ["a\x1b[2J\n.json", "x" * 200 + ".json", "\u202e.json", "\udc80.json"])
def test_the_name_of_a_file_is_text_in_its_error(name, tmp_path):
    for data in (None, b"{", b"\xff"):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=r"\.json") as error:
            read_json(tmp_path / name)
        assert str(error.value).isprintable() and len(str(error.value)) <= 500
