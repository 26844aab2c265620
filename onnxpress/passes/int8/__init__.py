"""Integer arithmetic: static and dynamic int8, its calibration and the choice of nodes."""
