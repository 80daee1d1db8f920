"""The language of settings: what is read, and what is refused."""

import pytest

from vtamiq.utils.configs import parse_setting


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("steps=20", ("steps", 20)),
        ("rate=1e-3", ("rate", 1e-3)),
        ("rates=[1e-3, 1.5e2]", ("rates", [1e-3, 150.0])),
        ("on=true", ("on", True)),
        ("tag=blur", ("tag", "blur")),
        ("tag=1e-3abc", ("tag", "1e-3abc")),
        ('tag="20"', ("tag", "20")),
        ("types=[blur, noise]", ("types", ["blur", "noise"])),
        ("model=null", ("model", None)),
        ("formula=a=b", ("formula", "a=b")),
        ("steps[-1].stage.epochs=3", ("steps[-1].stage.epochs", 3)),
    ],
)
def test_setting(text, expected):
    name, value = parse_setting(text)
    assert (name, value) == expected
    assert type(value) is type(expected[1])


@pytest.mark.parametrize("text", ["steps", "=3", "two words=3", "types=[1", "a={b: 1, b: 2}"])
def test_refused(text):
    with pytest.raises(ValueError, match=r"expected NAME=VALUE|cannot be read"):
        parse_setting(text)
