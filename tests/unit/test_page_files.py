"""Is the page only files of this gateway, with nothing in it that could run what comes from outside?"""

import re
from html.parser import HTMLParser

import pytest

from agentserve.gateway.page.files import HEADERS, read_files

FILES = read_files()
SCRIPTS = {name: file.content.decode() for name, file in FILES.items() if name.endswith(".js")}


class Markup(HTMLParser):
    """Notes every element with its attributes, and the text of scripts and styles."""

    def __init__(self):
        super().__init__()
        self.elements = []
        self.inline = ""

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] in ("script", "style"):
            self.inline += data.strip()


@pytest.fixture(scope="module")
def markup():
    parser = Markup()
    parser.feed(FILES["index.html"].content.decode())
    return parser


def test_the_policy_lets_only_files_of_this_gateway_run_and_no_text_become_markup():
    rules = dict(rule.split(" ", 1) for rule in HEADERS["content-security-policy"].split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["require-trusted-types-for"] == "'script'"
    assert rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "unsafe" not in HEADERS["content-security-policy"]


def test_the_markup_has_no_inline_script_style_or_handler(markup):
    assert not markup.inline
    for _, attributes in markup.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]


def test_everything_that_is_loaded_is_a_file_of_the_page(markup):
    named = [a.get("src") or a["href"] for t, a in markup.elements if t in ("script", "img", "link")]
    named += [f"ui/{name}" for text in SCRIPTS.values() for name in re.findall(r'from "\./([^"]+)"', text)]
    assert {name.removeprefix("ui/") for name in named} == set(FILES) - {"index.html"}


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_no_script_makes_markup_or_code_of_text(name):
    for way in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "new Function",
        "srcdoc",
        "http:",
    ):
        assert way not in SCRIPTS[name].replace("http://www.w3.org/2000/svg", ""), way


def test_every_label_and_heading_that_is_pointed_at_is_there(markup):
    ids = [a["id"] for _, a in markup.elements if "id" in a]
    assert len(ids) == len(set(ids))
    pointed = [a[key] for _, a in markup.elements for key in ("for", "aria-labelledby") if key in a]
    assert set(pointed) - {"run-title"} <= set(ids)
