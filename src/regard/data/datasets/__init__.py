"""The published data sets: name -> where a `published.Published` says what it looks like and where to get it.

Their names are those of `regard data download`; a folder is compared with each in this order. To add one: a file with
such a `Published` in it, and its entry here. Nothing is imported, since `--help` reads this.
"""

DATASETS = {
    "voc2012": "regard.data.datasets.voc:VOC",
    "sbd": "regard.data.datasets.voc:SBD",  # goes into the folder of voc2012
    "coco-stuff-10k": "regard.data.datasets.coco_stuff:COCO_STUFF_10K",
    "coco-stuff-164k": "regard.data.datasets.coco_stuff:COCO_STUFF_164K",
    "ade20k": "regard.data.datasets.ade20k:ADE",
    "pets": "regard.data.datasets.pets:PETS",
    "camvid": "regard.data.datasets.camvid:CAM_VID",
    "cityscapes": "regard.data.datasets.cityscapes:CITYSCAPES",
    "tiny-imagenet": "regard.data.datasets.tiny_imagenet:TINY_IMAGENET",
}
