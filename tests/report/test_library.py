"""The drawing library: what a page runs of it, and that a script of another make stays as it is."""

from __future__ import annotations

import pytest

from instdiff.reporting.plotly_script import eager, library, plotly_script, without

HEAD = '(function(root, factory) {root.moduleName = factory();} (typeof self !== "undefined" ? self : this'
MODULES = (
    'var b1=W((x,y)=>{"use strict";y.exports={plot:p(),moduleType:"trace",name:"bar",meta:{}}});'
    'var b=W((x,y)=>{"use strict";y.exports=b1()});'
    'var m1=W((x,y)=>{"use strict";y.exports={moduleType:"trace",name:"scattermap"}});'
    'var $m=W((x,y)=>{"use strict";y.exports=m1()});'
    'var g1=W((x,y)=>{"use strict";y.exports={moduleType:"trace",name:"scattergl"}});'
    'var g2=W((x,y)=>{"use strict";var n=q(),o=g1();o.plot=n;y.exports=o});'
    'var g=W((x,y)=>{"use strict";y.exports=g2()});'
    'var c=W((x,y)=>{"use strict";y.exports={moduleType:"component",name:"calendars"}});'
    'var o=W((x,y)=>{"use strict";y.exports=z});'
)
LAST = "var i=W((x,y)=>{var r=k();r.register([b(),$m(),g(),c(),o()]);y.exports=r});"
SCRIPT = f"""{HEAD}, () => {{
"use strict";var Plotly=(()=>{{{MODULES}{LAST}return i()}})();
return Plotly;
}}));
"""


def test_only_what_is_drawn_is_run() -> None:
    def run(*kinds: str) -> str:
        return without(SCRIPT, kinds).partition("register([")[2].partition("])")[0]

    assert run("bar", "scatter") == "b(),c(),o()"  # what is no trace, or not known, stays
    assert run("scattergl") == "g(),c(),o()"
    assert run() == "c(),o()"
    assert run("bar", "candlestick") == "b(),$m(),g(),c(),o()"  # one that is drawn was not found
    assert without(SCRIPT, ["bar"]).replace("[b(),c(),o()]", "[b(),$m(),g(),c(),o()]") == SCRIPT


def test_the_bundle_is_compiled_at_once() -> None:
    made = eager(SCRIPT)
    assert f'{HEAD}, (() => {{\n"use strict";var Plotly' in made and made.endswith("return Plotly;\n})));\n")
    assert len(made) == len(SCRIPT) + 2


@pytest.mark.parametrize(
    "script", ["", SCRIPT.replace("=>", "=> "), SCRIPT + "more();", SCRIPT[len(HEAD) :], 2 * SCRIPT]
)
def test_a_script_of_another_make_is_not_compiled_at_once(script: str) -> None:
    assert eager(script) == script


@pytest.mark.parametrize("script", ["", "window.Plotly = {};", SCRIPT.replace("r.register", "r.add"), 2 * SCRIPT])
def test_a_script_of_another_make_is_run_whole(script: str) -> None:
    assert without(script, ["bar"]) == script


def test_the_installed_library_is_made_as_expected() -> None:
    whole, drawn = plotly_script(), library(frozenset({"bar", "box", "heatmap", "scatter", "scattergl"}))
    assert len(whole) > len(drawn) > 0.99 * len(whole)
    assert drawn != eager(whole) and drawn != without(whole, ["bar", "box", "heatmap", "scatter", "scattergl"])
    assert library(frozenset({"no such kind"})) == eager(whole)
