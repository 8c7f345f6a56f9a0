"""PyTorch's compiler and spread tensors are imported by those who use them, and then all is as if they always were."""

import gc
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from thinktune.imports import uncollected
from thinktune.models.device import LOADING


def said(code: str, **environment: str) -> str:
    """Return what a process of its own prints, without its last line break."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_what_was_decorated_before_there_was_a_compiler_is_kept_from_it_or_marked_for_it_once_there_is() -> None:
    code = """
import sys
from thinktune.imports import importing
with importing():
    import torch, transformers.masking_utils, transformers.integrations.deepgemm
    from accelerate.utils import is_compiled_module
    from torch.optim import AdamW

@torch.compiler.disable
def kept(x): return x + 1
@torch._disable_dynamo(recursive=False)
def kept_too(x): return x + 1
@torch.compiler.assume_constant_result
def constant(): return 3

def trained():
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 4)
    optimizer = AdamW(layer.parameters(), lr=0.1)
    for _ in range(3):
        layer(torch.ones(4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert layer.weight.grad is None and layer.weight.requires_grad
    return layer.weight

without = trained()
assert kept(1) == kept_too(1) == 2 and not is_compiled_module(torch.nn.Linear(1, 1))
assert "torch._dynamo" not in sys.modules and not hasattr(constant, "_dynamo_marked_constant")
with transformers.masking_utils.TransformGetItemToIndex():
    pass
assert "torch._dynamo" in sys.modules and constant._dynamo_marked_constant
assert torch.equal(trained(), without)
assert is_compiled_module(torch.compile(torch.nn.Linear(1, 1), backend="eager"))
for function in (kept, kept_too):
    assert torch.compile(lambda x: function(2 * x), backend="eager")(torch.ones(1)) == 3
    try:
        torch.compile(lambda x: function(2 * x), backend="eager", fullgraph=True)(torch.ones(1))
    except torch._dynamo.exc.Unsupported:
        continue
    raise SystemExit("compiled")
print("as ever")
"""
    assert said(code) == "as ever"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "left_out", "there"), [("1", True, False), ("2", True, True), ("1", False, True)]
)
def test_spread_tensors_are_left_out_of_a_process_alone_where_a_verb_says_so(
    processes: str, left_out: bool, there: bool
) -> None:
    code = f"""
import sys
from thinktune.imports import DISTRIBUTED, importing, leave_out
leave_out(*{"[DISTRIBUTED]" if left_out else "[]"})
with importing("bitsandbytes"):  # which has functions compiled
    import peft.tuners.tuners_utils as peft
    from transformers.utils import is_torch_distributed_available
print(is_torch_distributed_available(), peft._torch_supports_distributed, "torch.distributed.tensor" in sys.modules)
"""
    assert said(code, WORLD_SIZE=processes) == f"{there} {there} {there}"


def test_layers_without_numbers_are_left_so_while_a_model_is_made_and_others_are_drawn_as_ever() -> None:
    torch.manual_seed(1)
    usual = nn.Linear(3, 2).weight, nn.Embedding(4, 2).weight
    resets = nn.Linear.reset_parameters, nn.Embedding.reset_parameters
    torch.manual_seed(1)
    with LOADING:
        with torch.device("meta"):
            assert nn.Linear(3, 2).weight.is_meta
            assert nn.Embedding(4, 2, padding_idx=0).weight.is_meta
        drawn = nn.Linear(3, 2).weight, nn.Embedding(4, 2).weight
        assert not gc.isenabled()
    assert all(map(torch.equal, drawn, usual))
    assert (nn.Linear.reset_parameters, nn.Embedding.reset_parameters) == resets
    assert gc.isenabled()


def test_garbage_is_looked_for_again_after_an_error_and_by_the_outermost_block() -> None:
    def fail() -> None:
        with uncollected():
            with uncollected():
                pass
            assert not gc.isenabled()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert gc.isenabled()
