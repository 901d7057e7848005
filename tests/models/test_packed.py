"""Packs beside the same adapters alone in PEFT: weights, outputs, gradients, files, coming, going."""

import json

import pytest
import torch
from peft import PeftModel
from torch import nn

from meqsum_lightning.errors import UserError
from meqsum_lightning.models.adapters import (
    adapter_state,
    apply_adapter,
    load_adapter_state,
    save_adapter,
    trainable_parameters,
)
from meqsum_lightning.models.dropout import recompute_context, replace_adapter_dropout, row_keys
from meqsum_lightning.models.losses import row_losses
from meqsum_lightning.models.packed import PackedModel, packable
from meqsum_lightning.models.packed_layer import PackedLinear
from tests.models.packs import (
    FAMILIES,
    MIXED,
    SIZES,
    alone,
    backbone,
    batch,
    gradients,
    logits,
    make_pack,
    parts,
    stirred,
)
from tests.models.test_dropout import keys_of
from tests.models.test_targets import adapter_config

EXACT = {"rtol": 1e-10, "atol": 1e-12}
DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def losses(model, inputs):
    sums, tokens = row_losses(logits(model, inputs), inputs["labels"])
    return sums.sum() / tokens.sum()


def bare(model):
    """The backbone's modules and weights, by name."""
    return {**dict(model.named_modules()), **dict(model.named_parameters())}


class TestWeights:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("index", range(len(MIXED)))
    def test_start_as_alone(self, family, dtype, index):
        """In a pack that holds others already: names, order, values and types."""
        pack = PackedModel(backbone(family, dtype))
        pack.add(7, MIXED[0], seed=99)
        torch.manual_seed(5)
        pack.add(index, MIXED[index], seed=3)
        after = torch.rand(1)
        torch.manual_seed(5)
        assert torch.equal(after, torch.rand(1))
        solo = trainable_parameters(apply_adapter(backbone(family, dtype), MIXED[index], seed=3))
        packed = pack.parameters_of(index)
        assert list(packed) == list(solo)
        for name, value in solo.items():
            assert value.dtype == packed[name].dtype
            assert torch.equal(value, packed[name])

    def test_are_the_only_ones_that_train(self):
        pack = make_pack()
        mine = [id(p) for i in pack.adapters for p in pack.parameters_of(i).values()]
        assert sorted(mine) == sorted(id(p) for p in trainable_parameters(pack).values())

    def test_state_goes_from_the_pack_to_a_single_model_and_back(self):
        pack = make_pack()
        state = pack.adapter_state(1)
        solo = apply_adapter(backbone(), MIXED[1], seed=50)
        load_adapter_state(solo, state)
        assert all(torch.equal(a, state[n]) for n, a in adapter_state(solo).items())
        others = [pack.adapter_state(i) for i in (0, 2, 3)]
        stirred(trainable_parameters(solo), seed=1)
        pack.load_adapter_state(1, adapter_state(solo))
        assert all(torch.equal(a, pack.adapter_state(1)[n]) for n, a in adapter_state(solo).items())
        for index, before in zip((0, 2, 3), others, strict=True):
            assert all(torch.equal(a, before[n]) for n, a in pack.adapter_state(index).items())
        with pytest.raises(UserError, match="has shape"):
            pack.load_adapter_state(0, state)
        with pytest.raises(UserError, match="lacks"):
            pack.load_adapter_state(2, state)

    def test_a_state_is_a_copy(self):
        pack = make_pack()
        state = pack.adapter_state(0)
        stirred(pack.parameters_of(0), seed=1)
        assert not any(torch.equal(a, state[n]) for n, a in pack.parameters_of(0).items())

    def test_optimizer_state_fits(self):
        pack = make_pack()
        solo = alone(pack, 0, MIXED[0])
        ours = torch.optim.AdamW(pack.parameters_of(0).values(), lr=1e-2)
        theirs = torch.optim.AdamW(trainable_parameters(solo).values(), lr=1e-2)
        inputs = batch(3)
        for _ in range(2):
            with pack.rows([3], order=[0]):
                losses(pack, inputs).backward()
            losses(solo, inputs).backward()
            for optimizer in (ours, theirs):
                optimizer.step()
                optimizer.zero_grad()
            # Now each goes on with the state of the other.
            first, second = ours.state_dict(), theirs.state_dict()
            ours.load_state_dict(second)
            theirs.load_state_dict(first)
        for name, value in trainable_parameters(solo).items():
            torch.testing.assert_close(pack.parameters_of(0)[name], value, rtol=1e-7, atol=1e-9)


class TestStep:
    @pytest.mark.parametrize("grouping", ["each", "rank", "padded"])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_outputs_and_gradients_are_those_alone(self, family, grouping):
        pack = make_pack(family=family, grouping=grouping)
        inputs = batch(sum(SIZES))
        with pack.rows(SIZES):
            together = logits(pack, inputs)
        sums, tokens = row_losses(together, inputs["labels"])
        per_job = [
            s.sum() / t.sum() for s, t in zip(sums.split(SIZES), tokens.split(SIZES), strict=True)
        ]
        sum(per_job).backward()
        for index, (adapter, mine) in enumerate(zip(MIXED, parts(inputs, SIZES), strict=True)):
            solo = alone(pack, index, adapter, family)
            expected = logits(solo, mine)
            torch.testing.assert_close(together.split(SIZES)[index], expected, **EXACT)
            losses(solo, mine).backward()
            found = gradients(pack.parameters_of(index))
            for name, value in gradients(trainable_parameters(solo)).items():
                # Losses are summed in fp32, which is all that differs.
                torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-8)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_all_gradients_in_float64_to_ten_digits(self, family):
        pack = make_pack(family=family)
        inputs = batch(sum(SIZES))
        with pack.rows(SIZES):
            logits(pack, inputs).square().sum().backward()
        for index, (adapter, mine) in enumerate(zip(MIXED, parts(inputs, SIZES), strict=True)):
            solo = alone(pack, index, adapter, family)
            logits(solo, mine).square().sum().backward()
            found = gradients(pack.parameters_of(index))
            for name, value in gradients(trainable_parameters(solo)).items():
                assert (found[name] - value).norm() <= 1e-10 * value.norm()

    @pytest.mark.parametrize("family", FAMILIES)
    def test_gradients_in_fp32(self, family):
        pack = make_pack(family=family, dtype=torch.float32)
        inputs = batch(sum(SIZES))
        with pack.rows(SIZES):
            logits(pack, inputs).square().sum().backward()
        for index, (adapter, mine) in enumerate(zip(MIXED, parts(inputs, SIZES), strict=True)):
            solo = alone(pack, index, adapter, family, torch.float32)
            logits(solo, mine).square().sum().backward()
            found = gradients(pack.parameters_of(index))
            for name, value in gradients(trainable_parameters(solo)).items():
                assert (found[name] - value).norm() <= 1e-5 * value.norm()

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_bf16(self, family, dtype):
        """As near to float64 as PEFT is, with autocast and with bf16 weights."""
        pack = make_pack(family=family, dtype=dtype)
        exact = make_pack(family=family)
        exact.backbone.load_state_dict(pack.backbone.state_dict())
        inputs = batch(sum(SIZES))
        with torch.no_grad():
            with torch.autocast("cpu", torch.bfloat16), pack.rows(SIZES):
                ours = logits(pack, inputs)
            with exact.rows(SIZES):
                true = logits(exact, inputs)
            with torch.autocast("cpu", torch.bfloat16):
                theirs = torch.cat(
                    [
                        logits(alone(pack, i, MIXED[i], family, dtype), mine)
                        for i, mine in enumerate(parts(inputs, SIZES))
                    ]
                )
        assert (ours - true).norm() <= 1.3 * (theirs - true).norm()

    @pytest.mark.parametrize("family", FAMILIES)
    def test_nan_in_one_loss_is_not_noticed_by_the_rest(self, family):
        inputs = batch(sum(SIZES))

        def found(factor, spoil):
            pack = make_pack(family=family)
            if spoil:
                stirred({"b": pack.parameters_of(1).popitem()[1]}, seed=1)
                for value in pack.parameters_of(1).values():
                    value.data[0, 0] = float("nan")
            with pack.rows(SIZES):
                sums, _ = row_losses(logits(pack, inputs), inputs["labels"])
            (sums * torch.tensor([1.0] * 3 + [factor] * 2 + [1.0] * 3)).sum().backward()
            return [gradients(pack.parameters_of(i)) for i in range(4)]

        clean = found(1.0, False)
        for spoiled in (found(float("nan"), False), found(1.0, True)):
            assert not any(g.isfinite().all() for g in spoiled[1].values())
            for index in (0, 2, 3):
                assert all(torch.equal(g, spoiled[index][n]) for n, g in clean[index].items())

    def test_adapters_without_rows_have_no_gradient_and_no_say(self):
        pack = make_pack()
        inputs = batch(5)
        with pack.rows([3, 0, 2, 0]):
            out = logits(pack, inputs)
        out.square().sum().backward()
        for index in (1, 3):
            assert all(p.grad is None for p in pack.parameters_of(index).values())
        assert all(p.grad is not None for p in pack.parameters_of(0).values())
        with pack.rows([3, 2], order=[0, 2]):
            assert torch.equal(out, logits(pack, inputs))
        with pack.rows([2, 3], order=[2, 0]):
            swapped = {n: torch.cat([v[3:], v[:3]]) for n, v in inputs.items()}
            torch.testing.assert_close(out.roll(2, 0), logits(pack, swapped), **EXACT)

    def test_backbone_alone(self):
        pack, inputs = make_pack(), batch(4)
        with pack.backbone_alone():
            torch.testing.assert_close(logits(pack, inputs), logits(backbone(), inputs), **EXACT)

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("within", [True, False])
    def test_activation_checkpointing(self, family, within):
        """Backward within the block and after another forward pass of other rows."""
        adapters = [a.model_copy(update={"dropout": 0.3}) for a in MIXED]
        inputs, keys = batch(sum(SIZES)), keys_of(*range(sum(SIZES)))
        results = []
        for checkpointing in (False, True):
            base = backbone(family)
            if checkpointing:
                base.activation_checkpointing_enable({"use_reentrant": False})
            model = PackedModel(base)
            for index, adapter in enumerate(adapters):
                model.add(index, adapter, seed=index)
                stirred(model.parameters_of(index), seed=index)
            with model.rows(SIZES), row_keys(model, keys):
                loss = logits(model, inputs).square().sum()
                if within:
                    loss.backward()
            if not within:
                with model.rows([2] * 4), row_keys(model, keys):
                    logits(model, inputs)
                loss.backward()
            results.append([p.grad for i in range(4) for p in model.parameters_of(i).values()])
        for plain, recomputed in zip(*results, strict=True):
            assert (plain - recomputed).norm() < 1e-12 * plain.norm()

    def test_compiles(self):
        torch._dynamo.reset()
        pack, inputs = make_pack(), batch(sum(SIZES))
        block = pack.backbone.encoder.block[0]
        hidden = pack.backbone.shared(inputs["input_ids"])
        results = []
        for module in (block, torch.compile(block, backend="eager")):
            pack.zero_grad()
            with pack.rows(SIZES):
                module(hidden)[0].square().sum().backward()
            results.append([p.grad for p in block.parameters() if p.requires_grad])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class TestDropout:
    RATES = (0.0, 0.2, 0.5, 0.3)

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("rates", [RATES, (0.1,) * 4])
    def test_masks_are_those_alone_whatever_the_padding(self, family, rates):
        adapters = [a.model_copy(update={"dropout": p}) for a, p in zip(MIXED, rates, strict=True)]
        pack = make_pack(adapters, family).train()
        pack.backbone.eval()  # BART's own dropout; the packed layers go on
        for module in pack.modules():
            if isinstance(module, PackedLinear):
                module.train()
        inputs = batch(sum(SIZES))
        # Two jobs visit the same rows; the pack is padded to the longest row of all.
        keys = keys_of(0, 1, 2, 0, 1, 8, 9, 4)
        with pack.rows(SIZES), row_keys(pack, keys):
            together = logits(pack, inputs)
        together.square().sum().backward()
        for index, mine in enumerate(parts(inputs, SIZES)):
            start = sum(SIZES[:index])
            solo = alone(pack, index, adapters[index], family)
            replace_adapter_dropout(solo.eval())
            for name, module in solo.named_modules():
                if "lora_dropout" in name:
                    module.train()
            longest = int(mine["attention_mask"].sum(1).max())
            short = {
                "input_ids": mine["input_ids"][:, :longest],
                "attention_mask": mine["attention_mask"][:, :longest],
                "labels": mine["labels"],
            }
            with row_keys(solo, keys[start : start + SIZES[index]]):
                expected = logits(solo, short)
            expected.square().sum().backward()
            torch.testing.assert_close(
                together[start : start + SIZES[index]], expected, rtol=1e-9, atol=1e-11
            )
            found = gradients(pack.parameters_of(index))
            for name, value in gradients(trainable_parameters(solo)).items():
                assert (found[name] - value).norm() <= 1e-9 * value.norm()

    def test_needs_keys_in_training_alone(self):
        pack = make_pack([MIXED[0].model_copy(update={"dropout": 0.5})])
        inputs = batch(2)
        with pack.rows([2]):
            logits(pack, inputs)
            pack.train()
            with pytest.raises(RuntimeError, match="row_keys"):
                logits(pack, inputs)
            with row_keys(pack, keys_of(1, 2)):
                first = logits(pack, inputs)
            with row_keys(pack, keys_of(1, 3)):
                second = logits(pack, inputs)
        assert torch.equal(first[0], second[0]) and not torch.equal(first[1], second[1])

    def test_a_wrapper_finds_the_keys_slot(self):
        """The Lightning module is what the engine has at hand."""
        pack = make_pack([MIXED[0].model_copy(update={"dropout": 0.5})]).train()
        wrapper = nn.ModuleDict({"model": pack})
        with pack.rows([2]), row_keys(wrapper, keys_of(1, 2)):
            logits(pack, batch(2))
        assert recompute_context(wrapper)()[1] is not None


class TestGeneration:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("num_beams", [1, 2, 4])
    @pytest.mark.parametrize("grouping", [None, "padded"])
    def test_one_for_all_equals_one_by_one(self, family, num_beams, grouping):
        pack = make_pack(family=family, grouping=grouping)
        # A tiny random model repeats one word: louder adapters make them differ.
        for index in pack.adapters:
            stirred(pack.parameters_of(index), seed=index)
        inputs = batch(sum(SIZES))
        del inputs["labels"]
        settings = {"max_new_tokens": 8, "num_beams": num_beams, "do_sample": False}
        with pack.rows(SIZES):
            together = pack.generate(**inputs, **settings)
        start = 0
        texts = set()
        for index, mine in enumerate(parts(inputs, SIZES)):
            expected = alone(pack, index, MIXED[index], family).generate(**mine, **settings)
            found = together[start : start + SIZES[index]]
            start += SIZES[index]
            width = expected.shape[1]
            assert torch.equal(found[:, :width], expected)
            assert (found[:, width:] == 0).all()  # padding up to the longest of all
            texts |= {tuple(row) for row in expected.tolist()}
        assert len(texts) > 4

    def test_inside_inference_mode_and_training_after_it(self):
        pack, inputs = make_pack(grouping="padded"), batch(sum(SIZES))
        with torch.inference_mode(), pack.rows(SIZES):
            logits(pack, inputs)
        with pack.rows(SIZES):
            losses(pack, inputs).backward()
        assert all(p.grad is not None for p in pack.parameters_of(0).values())


class TestComingAndGoing:
    def test_the_rest_go_on_as_before(self):
        pack, inputs = make_pack(), batch(5)
        order, sizes = [0, 2, 3], [2, 2, 1]
        with pack.rows(sizes, order):
            before = logits(pack, inputs)
        kept = {i: list(pack.parameters_of(i).values()) for i in order}
        pack.remove(1)
        assert pack.adapters == (0, 2, 3)
        with pack.rows(sizes):
            assert torch.equal(before, logits(pack, inputs))
        pack.add(9, MIXED[1], seed=4)
        with pack.rows([*sizes, 0]):
            assert torch.equal(before, logits(pack, inputs))
        for index in order:
            found = pack.parameters_of(index).values()
            assert all(a is b for a, b in zip(kept[index], found, strict=True))
        with pytest.raises(KeyError):
            pack.parameters_of(1)
        with pytest.raises(KeyError):
            pack.remove(1)
        with pytest.raises(ValueError, match="no adapter 1"):
            pack.rows([1], order=[1])
        with pytest.raises(ValueError, match="already"):
            pack.add(9, MIXED[1], seed=4)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_the_backbone_is_itself_again_when_all_have_left(self, family):
        model = backbone(family)
        before = bare(model)
        pack = PackedModel(model)
        for index, adapter in enumerate(MIXED):
            pack.add(index, adapter, seed=index)
        assert any(isinstance(m, PackedLinear) for m in model.modules())
        for index in (2, 0, 3, 1):
            pack.remove(index)
        after = bare(model)
        assert list(before) == list(after)
        assert all(before[name] is after[name] for name in before)

    @pytest.mark.parametrize("method", ["pissa", "dora", "full", "none"])
    def test_what_cannot_be_packed_is_said(self, method):
        adapter = adapter_config(method=method, r=None if method in ("full", "none") else 2)
        assert packable(adapter)
        pack = make_pack()
        before = bare(pack)
        with pytest.raises(UserError, match=f"adapter={method}: can't be packed") as caught:
            pack.add(9, adapter, seed=0)
        assert "expected lora or rslora" in str(caught.value)
        with pytest.raises(UserError, match="q_porj"):
            pack.add(9, adapter_config(target_modules=["q_porj"]), seed=0)
        assert list(before) == list(bare(pack)) and pack.adapters == (0, 1, 2, 3)
        assert all(packable(a) is None for a in MIXED)


class TestFolders:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("index", range(len(MIXED)))
    def test_are_those_that_single_training_writes(self, family, index, tmp_path):
        adapter = MIXED[index]
        pack = PackedModel(backbone(family, torch.float32), "some/base", "abc")
        pack.add(5, MIXED[0], seed=8)
        pack.add(index, adapter, seed=1)
        solo = apply_adapter(backbone(family, torch.float32), adapter, 1, "some/base", "abc")
        pack.save_adapter(index, tmp_path / "packed")
        save_adapter(solo, tmp_path / "solo")
        names = sorted(path.name for path in (tmp_path / "solo").iterdir())
        assert names == sorted(path.name for path in (tmp_path / "packed").iterdir())
        for name in names:
            theirs, ours = ((tmp_path / kind / name).read_bytes() for kind in ("solo", "packed"))
            if name.endswith(".json"):
                assert json.loads(theirs) == json.loads(ours)
            else:
                assert theirs == ours

    def test_open_in_plain_peft(self, tmp_path):
        pack, inputs = make_pack(dtype=torch.float32), batch(2)
        pack.save_adapter(3, tmp_path)
        opened = PeftModel.from_pretrained(backbone(dtype=torch.float32), str(tmp_path)).eval()
        with pack.rows([2], order=[3]):
            torch.testing.assert_close(logits(opened, inputs), logits(pack, inputs))
