"""The sources of labelled data by name: each is a command `glioma-dist convert NAME`. Imports no source."""

from glioma_dist.registry import SourceEntry

_HERE = "glioma_dist.data.convert"

DECLARED = (
    SourceEntry(
        "livecell",
        f"{_HERE}.sources:find_livecell",
        layout="LIVECell, as published",
        summary="Convert LIVECell to shards.",
        command="glioma_dist.cli.convert:LIVECELL",
    ),
    SourceEntry(
        "glioma-c6",
        f"{_HERE}.sources:find_glioma_c6",
        layout="Glioma C6, as published or as a CVAT export (COCO 1.0)",
        summary="Convert Glioma C6 or a CVAT export to shards.",
        command="glioma_dist.cli.convert:GLIOMA_C6",
    ),
    SourceEntry(
        "cvat",
        f"{_HERE}.cvat:find_cvat",
        layout="an export of CVAT in its own format (CVAT for images 1.1): annotations.xml with polygons, masks and "
        "ellipses",
        summary="Convert CVAT's XML and its images to shards.",
        numbers_frames=False,
    ),
    SourceEntry(
        "imagej",
        f"{_HERE}.imagej_rois:find_imagej",
        aliases=("fiji", "roiset"),
        layout="ROIs of Fiji or ImageJ: for each image x.tif a file x.zip, x_RoiSet.zip, RoiSet_x.zip or x.roi, "
        "Cellpose's x_rois.zip or predict's x.imagej.zip",
        summary="Convert ROIs of Fiji and their images to shards.",
        names_labels=False,
        numbers_frames=False,
    ),
    SourceEntry(
        "cellpose",
        f"{_HERE}.cellpose:find_cellpose",
        layout="Cellpose's own files: for each image x.tif a file x_seg.npy",
        summary="Convert Cellpose's _seg.npy and their images to shards.",
        names_labels=False,
        numbers_frames=False,
    ),
    SourceEntry(
        "ctc",
        f"{_HERE}.cell_tracking:find_gold",
        aliases=("cell_tracking_challenge",),
        layout="a data set of the Cell Tracking Challenge: images in 01, gold truth in 01_GT/SEG",
        summary="Convert Cell Tracking Challenge data, labelled by people.",
        names_labels=False,
    ),
    SourceEntry(
        "ctc-silver",
        f"{_HERE}.cell_tracking:find_silver",
        layout="a data set of the Cell Tracking Challenge: images in 01, silver truth, made by programs, in 01_ST/SEG",
        summary="Convert Cell Tracking Challenge data, labelled by programs.",
        names_labels=False,
    ),
)
