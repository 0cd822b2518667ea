"""Fully quantized training: torch modules whose GEMMs run on a described datapath, under the rules of section 5."""
