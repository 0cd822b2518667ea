"""What a datapath costs, relative to another: silicon area from recorded figures, and bits moved.

Numbers come from one named source at a time and are used as ratios only.
"""

from fqtsim.cost.area import Area, AreaSource, Ratio, mac_area, relative_area
from fqtsim.cost.figures import RECORDED, Figures
from fqtsim.cost.traffic import Traffic, gemm_traffic

__all__ = ["RECORDED", "Area", "AreaSource", "Figures", "Ratio", "Traffic", "gemm_traffic", "mac_area", "relative_area"]
