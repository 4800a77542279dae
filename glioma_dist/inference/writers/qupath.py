"""The regions as GeoJSON, as QuPath 0.5 and later import it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glioma_dist.inference.outlines import Polygon
from glioma_dist.inference.regions import region_outlines
from glioma_dist.inference.segmented import SegmentedImage
from glioma_dist.inference.writers.colours import class_colour
from glioma_dist.inference.writers.names import MARK

CLASSES = {False: "Covered by cells", True: "Cell"}
"""QuPath's class of the annotations, where the network tells one class: of components, and of separated cells."""


def write_qupath(path: Path, segmented: SegmentedImage) -> None:
    """Write a FeatureCollection with one annotation per region, of its class. Coordinates are pixels, as in QuPath."""
    regions, kind = segmented.regions, "Cell" if segmented.are_cells else "Component"
    pixel_size = segmented.metadata.pixel_size_um
    with path.open("w", encoding="utf-8") as file:
        file.write(f'{{"type": "FeatureCollection", "generator": {json.dumps(MARK)}, "features": [')
        for number, polygons in enumerate(region_outlines(regions, segmented.mask_rows), 1):
            area = int(regions.areas[number - 1])
            measurements = {"Area px^2": area}
            if pixel_size:
                measurements["Area µm^2"] = round(area * pixel_size**2, 3)
            feature = {
                "type": "Feature",
                "geometry": _geometry(polygons),
                "properties": {
                    "objectType": "annotation",
                    "name": f"{kind} {number}",
                    "classification": {
                        "name": segmented.region_class(number) or CLASSES[segmented.are_cells],
                        "color": class_colour(int(regions.classes[number - 1]), segmented.num_classes),
                    },
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
