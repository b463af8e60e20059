"""Tests of mpcluster.monitor."""
