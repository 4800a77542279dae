"""From published data sets to batches: conversion, shards, order, augmentation, loading."""
