"""Every ranker module keeps the contract; one that breaks a clause of it is found by that clause."""

import inspect
from dataclasses import fields
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
from contracts.ranker_module import RankerModuleContract, features_of, model_of

import ranker.modules
from ranker.inputs.search import Search
from ranker.modules.attention import masked_softmax
from ranker.modules.codes import Codes
from ranker.modules.cross import Cross
from ranker.modules.cube import Cube
from ranker.modules.din import Din
from ranker.modules.hstu import Hstu
from ranker.modules.ids import Ids
from ranker.modules.interest import Interest
from ranker.modules.logistic import Logistic
from ranker.modules.make import Make
from ranker.modules.module import Features, Module, Output
from ranker.modules.muse import Muse
from ranker.modules.numbers import Numbers
from ranker.modules.pairs import Pairs
from ranker.modules.sata import SaTa
from ranker.modules.sim import Sim
from ranker.modules.simtier import SimTier
from ranker.modules.twin import Twin
from ranker.modules.vector import Vector
from ranker.recipes import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")


class TestIds(RankerModuleContract):
    module = Ids


class TestInterest(RankerModuleContract):
    module = Interest


class TestNumbers(RankerModuleContract):
    module = Numbers


class TestCube(RankerModuleContract):
    module = Cube


class TestCodes(RankerModuleContract):
    module = Codes


class TestCross(RankerModuleContract):
    module = Cross


class TestDin(RankerModuleContract):
    module = Din


class TestHstu(RankerModuleContract):
    module = Hstu


class TestLogistic(RankerModuleContract):
    module = Logistic


class TestMake(RankerModuleContract):
    module = Make


class TestMuse(RankerModuleContract):
    module = Muse
    search = Search("content", keep=3, recent=4)


class TestPairs(RankerModuleContract):
    module = Pairs


class TestSaTa(RankerModuleContract):
    module = SaTa


class TestSimHard(RankerModuleContract):
    module = Sim
    search = Search("category", keep=3, recent=4)


class TestSimSoft(RankerModuleContract):
    module = Sim
    search = Search("content", keep=3, recent=4)


class TestSimTier(RankerModuleContract):
    module = SimTier


class TestTwin(RankerModuleContract):
    module = partial(Twin, keep=6)


class TestVector(RankerModuleContract):
    module = Vector


def test_every_module_of_the_product_is_under_the_contract():
    folder = Path(ranker.modules.__file__).parent
    files = [import_module(f"ranker.modules.{path.stem}") for path in folder.glob("[a-z]*.py")]
    there = {
        one
        for file in files
        for one in vars(file).values()
        if isinstance(one, type) and issubclass(one, Module)
    }
    held = {getattr(one.module, "func", one.module) for one in RankerModuleContract.__subclasses__()}
    assert there - {Module} == held


@pytest.mark.parametrize("name", [field.name for field in fields(Features)])
def test_a_module_that_reads_a_content_vector_or_whether_there_is_one_needs_content(name):
    """``query_known_R`` is known without vectors, too; everything else of the content is not."""
    reader = type("Reader", (Module,), {"reads": classmethod(lambda _: (name,))})
    of_content = any(one in name for one in ("content", "known", "cosine")) and name != "query_known_R"
    found = name.startswith("found")
    for by in ("category", "content"):
        recipe = Recipe("reading", {"reader": reader}, Search(by, keep=1, recent=1))
        assert recipe.needs_content(reader) == (of_content or (found and by == "content"))


class Target(Module):
    """Correct: the parts below break one clause each."""

    def __init__(self, widths):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(widths.ids))
        self.per_candidate = widths.ids

    def forward(self, target_RND):
        return Output(self.weight * target_RND)


class Wider(Target):
    def __init__(self, widths):
        super().__init__(widths)
        self.per_candidate += 1


class Deaf(Target):
    def forward(self, target_RND, query_known_R):
        return Output(self.weight * target_RND)


class Neighbours(Target):
    def forward(self, target_RND):
        return Output(self.weight * (target_RND - target_RND.mean(1, keepdim=True)))


class Crowd(Target):
    def forward(self, target_RND):
        return Output(self.weight * (target_RND - target_RND.mean(0, keepdim=True)))


class Padded(Target):
    def forward(self, target_RND, history_RLD):
        return Output(self.weight * target_RND * history_RLD.mean(1, keepdim=True))


class Empty(Target):
    def forward(self, target_RND, history_RLD, history_mask_RL):
        mean = history_RLD.sum(1) / history_mask_RL.sum(1)[:, None]
        return Output(self.weight * target_RND * mean[:, None])


class Unknown(Target):
    def forward(self, target_RND):
        return Output(self.weight * target_RND / target_RND.norm(dim=-1, keepdim=True))


class Dice(Target):
    def forward(self, target_RND):
        return Output(self.weight * target_RND + torch.rand(1))


class Stuck(Target):
    def forward(self, target_RND):
        return Output(self.weight.detach() * target_RND)


class Forgetful(Target):
    def __init__(self, widths):
        super().__init__(widths)
        self.unsaved = torch.randn(widths.ids)

    def forward(self, target_RND):
        return Output(self.weight * self.unsaved * target_RND)


class Frozen(Target):
    def forward(self, target_RND):
        return Output(self.weight * target_RND.detach())


def hold(module, clause, tmp_path, monkeypatch):
    """Run one clause of the contract on a module."""
    contract, model = RankerModuleContract(), model_of(module)
    contract.module = module
    given = {"model": model, "part": model.parts["one"], "features": features_of(model)}
    given |= {"tmp_path": tmp_path, "monkeypatch": monkeypatch}
    method = getattr(contract, f"test_{clause}")
    method(**{name: given[name] for name in inspect.signature(method).parameters})


@pytest.mark.parametrize(
    "broken,clause",
    [
        (Wider, "it_computes_the_widths_it_declares"),
        (Deaf, "what_it_declares_to_read_makes_a_difference"),
        (Neighbours, "a_candidate_knows_nothing_of_the_others"),
        (Crowd, "a_batch_is_its_requests_one_by_one"),
        (Padded, "padding_changes_nothing"),
        (Empty, "who_has_no_history_gets_finite_output_and_gradients"),
        (Unknown, "ids_and_vectors_that_nobody_knows_get_finite_output"),
        (Dice, "equal_input_gives_equal_output_and_equal_seeds_equal_weights"),
        (Stuck, "a_gradient_reaches_every_weight"),
        (Forgetful, "saving_and_opening_loses_nothing"),
        (Frozen, "what_it_can_say_it_learns"),
    ],
)
def test_a_broken_module_is_found_by_its_clause(broken, clause, tmp_path, monkeypatch):
    right = Interest if clause.startswith(("padding", "who_has")) else Target
    if not clause.startswith("what_it_can"):  # the suites above show it, and it takes seconds
        hold(right, clause, tmp_path / "right", monkeypatch)
    with pytest.raises(AssertionError):
        hold(broken, clause, tmp_path / "broken", monkeypatch)


def test_a_masked_softmax_is_that_of_the_allowed_scores_alone_whatever_the_others_are():
    draw = torch.Generator().manual_seed(0)
    score = torch.randn(3, 4, 6, generator=draw)
    allowed = torch.tensor([[1, 0, 1, 1, 0, 1], [0] * 6, [0, 0, 0, 0, 0, 1]], dtype=torch.bool)[:, None]
    for wild in (0.0, 1e38, -1e38):
        given = torch.where(allowed, score, wild).requires_grad_()
        weight = masked_softmax(given, allowed)
        (weight * torch.randn(weight.shape, generator=draw)).sum().backward()
        for r in range(3):
            mine = allowed[r, 0]
            torch.testing.assert_close(weight[r][:, mine], torch.softmax(score[r][:, mine], -1))
            assert not weight[r][:, ~mine].any() and not given.grad[r][:, ~mine].any()
        assert given.grad[0].any() and given.grad.isfinite().all()
