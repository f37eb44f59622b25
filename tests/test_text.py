"""Text on pages and in terminals: escaped where Markdown is drawn, and as it was written everywhere else."""

import pytest

from lifecycle_assets.text import literal, plain, unescaped


@pytest.mark.parametrize(
    "text", ["right_answer/mean (95 %) is *worse*", "<b>&amp; &lt;</b> [x](y) `c` # + ! | ~ {z}", "\\_ \\\\ &copy;"]
)
def test_what_is_escaped_for_a_page_is_said_unescaped_elsewhere(text: str) -> None:
    assert unescaped(plain(text)) == literal(text) == text
