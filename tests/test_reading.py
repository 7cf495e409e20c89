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
