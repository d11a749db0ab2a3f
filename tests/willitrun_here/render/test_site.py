from __future__ import annotations

import re

from willitrun_here.render import card, lists, site


def test_every_link_of_a_site_leads_somewhere(answers, tmp_path):
    every = [answers.a100(), answers.mi100(), answers.too_large(), answers.hostile(), answers.a100()]
    files = site.write(tmp_path / "out", every)
    assert files[0].name == "index.html"
    assert len({file.name.lower() for file in files}) == len(files)
    linked = set()
    for file in files:
        assert file.parent == tmp_path / "out"
        hrefs = re.findall(r'href="([^"]+)"', file.read_text(encoding="utf-8"))
        for href in hrefs:
            assert (tmp_path / "out" / href).is_file()
        linked |= set(hrefs)
    assert {file.name for file in files} <= linked
    answered = [file for file in files if " on " not in file.name and "-on-" in file.name and ".card." not in file.name]
    assert len(answered) == len(every)


def test_file_names_are_safe_and_never_alike():
    names = site.Names()
    taken = [
        names.take(words) for words in ("../../etc/passwd", "..", "", "A b", "a/b", "A B", "\u00fc" * 500, "CON\x00")
    ]
    assert taken == ["etc-passwd", "page", "page-2", "a-b", "a-b-2", "a-b-3", "page-3", "con"]


def test_lists_stay_readable_without_links(answers):
    html = lists.render_recommendations([answers.a100(), answers.mi100()])
    assert html.count("Kimi Linear") >= 2
    assert "<a " not in html
    assert "Where Kimi" in lists.render_comparison([answers.a100()])
    assert "0 models" in lists.render_recommendations([])


def test_a_card_is_small_and_says_the_essentials(answers):
    svg = card.render_svg(answers.a100())
    assert len(svg) < 4000
    for words in ("YES", "Tight fit", "Q5_K_M", "74 tok/s", "256K", "35.2 GiB of 39.5 GiB", "83 of 100"):
        assert words in svg
    assert "NO \u00b7 Does not fit" in card.render_svg(answers.too_large())
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", card.render_html(answers.a100()))
