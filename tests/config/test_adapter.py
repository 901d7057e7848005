"""What the adapter's keys take beside numbers, and what of it a configuration stores."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meqsum_lightning.config.adapter import alpha_value, is_layer_name, rank_multiple
from meqsum_lightning.config.compose import build_config
from meqsum_lightning.config.schema import AdapterConfig
from meqsum_lightning.errors import UserError


def adapter(*overrides: str) -> AdapterConfig:
    return build_config("train", overrides).adapter  # type: ignore[attr-defined]


def mistake(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        build_config("train", overrides)
    (line,) = caught.value.lines
    return line


class TestAlpha:
    @pytest.mark.parametrize(
        ("text", "value"),
        [("2r", 8.0), ("r", 4.0), ("0.5r", 2.0), (".5r", 2.0), ("16r", 64.0), ("16", 16.0)],
    )
    def test_a_multiple_of_the_rank_becomes_a_number(self, text, value):
        found = adapter("adapter.r=4", f"adapter.alpha={text}").alpha
        assert found == value and isinstance(found, float)

    @pytest.mark.parametrize(
        "text",
        ["2x", "0r", "-1r", "r2", "rr", "2R", "1e2r", "nanr", "0", "-1", "nan", "true", "[2]"],
    )
    def test_what_is_no_alpha(self, text):
        line = mistake(f"adapter.alpha={text}")
        assert line.startswith(f"adapter.alpha={text}: should be ")
        assert line.endswith("; expected a number > 0, or a multiple of the rank such as 2r")

    @given(factor=st.floats(1e-3, 1e3), r=st.integers(1, 4096))
    def test_any_factor(self, factor, r):
        text = f"{factor:.6f}"
        assert rank_multiple(f"{text}r") == float(text)
        assert alpha_value(f"{text}r", r) == float(text) * r

    def test_a_factor_without_end_is_none(self):
        with pytest.raises(ValueError, match="no positive multiple"):
            rank_multiple("9" * 400 + "r")


class TestLayers:
    def test_parts_stay_names(self):
        assert adapter("adapter.layers=first_half").layers == "first_half"
        assert adapter("adapter.layers=[1,0]").layers == [1, 0]

    def test_a_slip_is_one_line_with_the_choices(self):
        assert mistake("adapter.layers=first_thrd") == (
            "adapter.layers=first_thrd: no such choice; expected first_half, last_half, "
            "first_third, middle_third, last_third, block numbers such as [0,1], or null; "
            "did you mean first_third?"
        )

    @pytest.mark.parametrize("value", ["[-1]", "3", "[a]", "true", "[first_half]"])
    def test_what_is_no_block(self, value):
        line = mistake(f"adapter.layers={value}")
        assert "should be" in line and "block numbers such as [0,1]" in line
        assert "no such choice" not in line


class TestTargetModules:
    @pytest.mark.parametrize("name", ["q", "wi_0", "q_proj", "EncDecAttention.v"])
    def test_a_plain_name_is_stored_as_a_list(self, name):
        assert adapter(f"adapter.target_modules={name}").target_modules == [name]
        assert is_layer_name(name)

    def test_a_preset_stays_one(self):
        assert adapter("adapter.target_modules=qkv").target_modules == "qkv"

    @pytest.mark.parametrize(("name", "meant"), [("qvx", "qv"), ("atention", "attention")])
    def test_a_slip_is_told_before_any_model(self, name, meant):
        line = mistake(f"adapter.target_modules={name}")
        assert "no such preset; expected qv, " in line and line.endswith(f"did you mean {meant}?")

    def test_a_quoted_list_of_names_is_explained(self):
        line = mistake('adapter.target_modules="q,v"')
        assert "or a list of module names such as [q,v]" in line


class TestBudget:
    def test_a_default_rank_gives_way(self):
        found = adapter("adapter.budget=5000")
        assert (found.r, found.budget, found.alpha) == (None, 5000, None)
        assert adapter("experiment=demo", "adapter.budget=0.01").r is None
        assert adapter("adapter.budget=0.01", "adapter.r=null").budget == 0.01

    def test_a_typed_rank_does_not(self):
        line = mistake("adapter.budget=5000", "adapter.r=4")
        assert "adapter.r=4: cannot be joined with adapter.budget=5000" in line

    @pytest.mark.parametrize("value", ["0", "-1", "0.0", "1.0", "1.5", "true", "many", "nan"])
    def test_what_is_no_budget(self, value):
        line = mistake(f"adapter.budget={value}")
        assert line.startswith("adapter.budget=") and "a share of the backbone's" in line

    def test_only_a_low_rank_method_has_one(self):
        assert "adapter=full has no such setting" in mistake("adapter=full", "adapter.budget=500")
        assert adapter("experiment=ablation_matched", "adapter=full").budget is None
