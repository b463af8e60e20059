"""Tests of mpcluster.supervision."""
