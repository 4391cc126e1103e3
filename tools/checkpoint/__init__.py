"""Conversion of weights, upstream's and ModelLink's command line over `ascend_patch.checkpoint`."""
