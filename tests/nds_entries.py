"""Small files in the official form of NDS, for tests of everything that reads them."""

import json

RESNETS = [
    {"block_type": "res_basic_block", "ds": [1, d, 1, 1], "ws": [16, 16, 32, 48], "ss": [1, 1, 2, 2]} for d in (1, 2, 3)
]
for _net in RESNETS:
    _net |= {"bot_muls": [], "num_gs": []}
TEXTS = [f"resnet w16 d{d}-w16 d1-w32 d1-w48" for d in (1, 2, 3)]
PARAMS = [56538, 61210, 65882]  # of these networks for CIFAR-10
FLOPS = [11556330, 16438762, 21321194]


def entry(at, errors=(60.0, 20.5, 22.25), **changes):
    """One entry with every key of the official ones, of the ``at``-th ResNet."""
    return {
        "job_id": str(100 + at), "rng_seed": 1, "exp_mem": 0, "params": PARAMS[at], "flops": FLOPS[at],
        "net": RESNETS[at], "act_mem": 5106.0, "iter_time": 0.198, "min_test_top1": min(errors),
        "optim": {"base_lr": 0.1, "iter_lr": False, "lr_policy": "cos", "max_ep": len(errors), "mom": 0.9, "wd": 5e-4},
        "train_ep_loss": [1.0] * len(errors), "train_ep_top1": [30.0] * len(errors), "test_ep_top1": list(errors),
        "train_it_loss": [], "train_it_top1": [], **changes,
    }  # fmt: skip


def write(path, content):
    """Write a file as the benchmark does."""
    path.write_text(json.dumps(content))
    return path
