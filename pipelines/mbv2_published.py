"""The networks that AZ-NAS's own searches of mbv2 found, three seeds for each limit."""

from __future__ import annotations

# By the limit in FLOPs: stem, blocks and head in short, with the complexity that the search's log states
# (ImageNet_MBV2/save_dir/ETF74_*pop1024* in the history of its repository).
SEARCHED: dict[float, dict[str, str]] = {
    450e6: {
        "24 E4K3(24,32,2,32,3) E1K3(32,80,2,48,1) E2K5(80,96,2,96,5) E4K5(96,192,2,192,3)": "4.49904e+08",
        "24 E1K5(24,24,2,24,2) E1K5(24,96,2,96,1) E2K5(96,152,2,152,5) E1K5(152,384,2,384,4)": "4.48978e+08",
        "48 E1K5(48,64,2,64,3) E1K3(64,80,2,80,1) E4K7(80,80,2,80,3) E1K5(80,240,2,240,5)": "4.49535e+08",
    },
    600e6: {
        "16 E1K3(16,32,2,32,1) E4K3(32,64,2,64,1) E1K5(64,240,2,240,5) E2K5(240,320,2,320,5)": "5.99889e+08",
        "48 E1K5(48,64,2,64,1) E1K5(64,120,2,120,2) E2K3(120,152,2,144,4) E6K3(152,152,2,152,5)": "5.95221e+08",
        "24 E2K3(24,48,2,48,2) E1K3(48,96,2,96,3) E4K3(96,120,2,120,4) E6K3(120,160,2,160,3)": "5.96569e+08",
    },
    1e9: {
        "40 E4K5(40,32,2,32,2) E4K3(32,72,2,72,3) E1K7(72,288,2,288,4) E1K7(288,448,2,448,5)": "9.954e+08",
        "16 E1K3(16,16,2,16,3) E2K5(16,168,2,120,1) E2K5(168,240,2,240,3) E2K5(240,240,1,240,4)"
        " E2K5(240,240,2,240,3)": "9.99698e+08",
        "48 E1K7(48,40,2,32,1) E1K5(40,80,2,96,5) E4K5(80,200,2,168,5) E2K5(200,200,2,200,3)": "9.99789e+08",
    },
}
LAYERS = {450e6: 14, 600e6: 14, 1e9: 16}


def written_out(short: str, stride: int = 2, head: int = 2048) -> str:
    """Return the space's text of a network that is written in short: its stem's channels and its blocks."""
    stem, *blocks = short.split()
    width = blocks[-1].split("(")[1].split(",")[1]
    inner = "".join(f"SuperResIDW{block}" for block in blocks)
    return f"SuperConvK3BNRELU(3,{stem},{stride},1){inner}SuperConvK1BNRELU({width},{head},1,1)"
