"""ViLD's 63 templates, articles and names as running text."""

import pytest
from class_prompts import VILD_TEMPLATES, group_by_templates, readable_name


def prompts(name, kind="vild"):
    ((templates, places),) = group_by_templates([name], kind).items()
    assert places == [0]
    return [template.replace("{}", readable_name(name)) for template in templates]


def test_there_are_63():
    assert len(set(VILD_TEMPLATES)) == len(VILD_TEMPLATES) == 63
    assert all(template.count("{}") == 1 for template in VILD_TEMPLATES)


def test_prefix_and_article():
    found = prompts("alarm_clock")
    assert len(set(found)) == 63
    assert found[:3] == [
        "There is an alarm clock in the scene.",
        "There is the alarm clock in the scene.",
        "This is a photo of an alarm clock in the scene.",
    ]
    for text in (
        "itap of an alarm clock.",
        "itap of my alarm clock.",
        "This is a photo of many alarm clock.",
        "This is a good photo of an alarm clock.",
        "This is a photo of a nice alarm clock.",
        "This is a photo of the hard to see alarm clock.",
        "This is a jpeg corrupted photo of the alarm clock.",
        "This is a black and white photo of an alarm clock.",
        "This is the plastic alarm clock.",
        "This is an embroidered alarm clock.",
        "This is a painting of the alarm clock.",
    ):
        assert text in found
    assert all(text.startswith(("This is ", "itap ", "There is ")) for text in found)
    assert sum(text.startswith("This is ") for text in found) == 58
    assert sum("{" in text for text in found) == 0


def test_the_article_is_that_of_the_name_as_it_is_spelt():
    for name, article in (("cat", "a"), ("orange", "an"), ("Orange", "a"), ("unicorn", "an")):
        assert f"itap of {article} {name.lower()}." in prompts(name)
    groups = group_by_templates(["cat", "apple", "dog", "egg"], "vild")
    assert list(groups.values()) == [[0, 2], [1, 3]]
    assert prompts("apple", "a") == ["a apple"]


def test_names_as_text():
    for name, text in (
        ("flip-flop_(sandal)", "flip-flop (sandal)"),
        ("Band_Aid", "band aid"),
        ("tv/monitor", "tv or monitor"),
        ("etc.", "etc"),
    ):
        assert readable_name(name) == text


def test_unknown_prompts():
    with pytest.raises(ValueError, match="prompts must be one of vild, a, got 'b'"):
        group_by_templates(["cat"], "b")
