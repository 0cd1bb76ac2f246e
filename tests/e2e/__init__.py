"""Tests of Imagegate on a real cluster: build the image, install the chart, apply objects."""
