"""Sizes that NAS-Bench-Suite-Zero published for networks of TransNAS-Bench-101's code, and how it counted.

They are of its tables zc_transbench101_micro.json and zc_transbench101_macro.json (task class_scene, for which it built
63 classes): millions of parameters and millions of FLOPs for one image of 256 x 256 pixels.
"""

from __future__ import annotations

import torch
from torch import nn

CLASSES = 63

MICRO = {
    "1_00_210": (0.910687, 263.299072),
    "1_00_223": (9.440607, 1946.13248),
    "0_11_233": (16.256351, 3288.30976),
    "1_10_312": (7.381087, 1600.561152),
    "1_10_123": (9.103199, 1852.90752),
    "3_10_022": (8.064351, 1744.805888),
    "2_13_121": (9.614431, 1972.215808),
    "0_13_111": (8.072287, 1656.496128),
    "1_33_223": (23.237983, 4744.880128),
    "2_31_021": (7.718495, 1693.786112),
    "0_12_010": (1.082719, 288.23552),
    "2_30_103": (14.708063, 3062.04672),
    "2_31_031": (14.534239, 3035.963392),
    "3_03_121": (14.880095, 3086.983168),
    "3_22_323": (22.372959, 4662.861824),
    "0_21_021": (1.593951, 407.543808),
    "3_02_201": (7.718495, 1693.786112),
    "2_23_312": (16.076383, 3351.683072),
    "0_22_311": (7.718495, 1693.786112),
}
MACRO = {
    "1242": (11.218783, 13602.455552),
    "2124": (11.661663, 21871.0016),
    "121113": (3.081183, 10743.201792),
    "1124": (2.956895, 5612.273664),
    "413331": (3.557343, 1450.03008),
    "3443": (5.240543, 556.115968),
    "411333": (3.557343, 2046.12096),
    "441133": (12.238431, 2572.331008),
    "133341": (1.748575, 921.916416),
    "34421": (20.664287, 1658.986496),
    "332241": (20.816479, 2101.354496),
    "44134": (15.859551, 2063.060992),
    "231134": (5.057631, 4370.649088),
    "31424": (11.370975, 1609.736192),
    "113112": (1.297247, 2304.65536),
    "44141": (22.873439, 2915.016704),
    "143132": (4.614751, 1718.259712),
    "331213": (2.203871, 650.078208),
    "113231": (2.199647, 2308.124672),
}


def sizes(space, arch, task="class_scene"):
    """Parameters and FLOPs as published, of what the space says and of the shapes that its full network meets.

    FLOPs there are the multiply-accumulates, two for each value that a batch norm makes, one for each that enters a
    ReLU, and for each channel of the pooling the square of one more than its side.
    """
    size, others = space.size(arch, task), 0

    def count(module, inputs, output):
        nonlocal others
        if isinstance(module, nn.BatchNorm2d):
            others += 2 * output.numel()
        elif isinstance(module, nn.ReLU):
            others += inputs[0].numel()
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            others += output.numel() * (inputs[0].shape[2] + 1) ** 2

    with torch.device("meta"):
        model = space.build(arch, task, full=True).model.eval()
        for module in model.modules():
            module.register_forward_hook(count)
        with torch.no_grad():
            model(torch.empty(1, *space.datasets[task].input_shape))
    channels, more = model.classifier.in_features, CLASSES - space.datasets[task].classes
    params = size.params + (channels + 1) * more
    return params / 1e6, (size.macs + channels * more + others) / 1e6
