"""The components as GeoJSON, as QuPath 0.5 and later import it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glioma_dist.inference.outlines import Polygon, outlines
from glioma_dist.inference.segmented import SegmentedImage
from glioma_dist.inference.writers.names import MARK
from glioma_dist.inference.writers.overlay import OUTLINE_COLOUR

CLASS = "Covered by cells"
"""QuPath's class of the annotations."""


def write_qupath(path: Path, segmented: SegmentedImage) -> None:
    """Write a FeatureCollection with one annotation per component. Coordinates are pixels, as in QuPath."""
    components = segmented.components
    pixel_size = segmented.metadata.pixel_size_um
    with path.open("w", encoding="utf-8") as file:
        file.write(f'{{"type": "FeatureCollection", "generator": {json.dumps(MARK)}, "features": [')
        for number, polygons in enumerate(outlines(segmented.mask_rows, components), 1):
            area = int(components.areas[number - 1])
            measurements = {"Area px^2": area}
            if pixel_size:
                measurements["Area µm^2"] = round(area * pixel_size**2, 3)
            feature = {
                "type": "Feature",
                "geometry": _geometry(polygons),
                "properties": {
                    "objectType": "annotation",
                    "name": f"Component {number}",
                    "classification": {"name": CLASS, "color": OUTLINE_COLOUR},
                    "measurements": measurements,
                },
            }
            file.write(("," if number > 1 else "") + "\n" + json.dumps(feature))
        file.write("\n]}\n")


def _geometry(polygons: list[Polygon]) -> dict[str, Any]:
    """A Polygon, or a MultiPolygon where parts of the component touch at corners only. Rings are closed."""
    coordinates = [[[*ring.tolist(), ring[0].tolist()] for ring in polygon] for polygon in polygons]
    if len(coordinates) == 1:
        return {"type": "Polygon", "coordinates": coordinates[0]}
    return {"type": "MultiPolygon", "coordinates": coordinates}
