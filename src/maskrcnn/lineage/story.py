"""The story in words: what each system does, what was slow or wrong about it, and what the next one changed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chapter:
    """One system. does: how it finds objects. changed: against the one before. trouble: what it left to the next."""

    key: str
    paper: str
    does: str
    changed: str
    trouble: str


CHAPTERS = {
    chapter.key: chapter
    for chapter in (
        Chapter(
            "hog-svm",
            "Dalal and Triggs 2005, Histograms of Oriented Gradients for Human Detection",
            "A window slides over the picture at every place and size. What lies under it is described by histograms "
            "of the directions of its gradients, and one linear SVM per class says whether it is an object.",
            "It is the yardstick that the first deep detectors were measured against.",
            "The description is made by hand and cannot be learned, and a window has one shape: an object that is "
            "wider, bent or half hidden does not fit it.",
        ),
        Chapter(
            "rcnn",
            "Girshick et al. 2014, Rich feature hierarchies for accurate object detection and semantic segmentation",
            "Selective Search proposes about 2000 regions that may be objects. Each is warped to one size and goes "
            "through a CNN by itself; linear SVMs say what it is, and a regression moves its box.",
            "Learned features in place of HOG, and regions of any shape in place of windows.",
            "The CNN runs once for each region, although the regions overlap and most of its work is done many times. "
            "Learning has three parts that know nothing of each other (CNN, SVMs, boxes), with all features on disk.",
        ),
        Chapter(
            "fast-rcnn",
            "Girshick 2015, Fast R-CNN",
            "The CNN runs once over the whole picture. RoIPool cuts each region's part out of its feature map, as "
            "7 x 7 values, and one network says class and box.",
            "All regions share the CNN's work, and one loss teaches everything at once: no SVMs, nothing on disk.",
            "The regions still come from Selective Search, which now takes most of the time, and which never learns "
            "what an object of this data set looks like.",
        ),
        Chapter(
            "faster-rcnn",
            "Ren et al. 2015, Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks",
            "A small network, the RPN, looks at every place of the same feature map and says of a few anchors whether "
            "they are an object, and how to move them. Its best proposals take the place of Selective Search.",
            "Proposals are learned, and cost next to nothing, since the feature map is there already.",
            "A box is not the object. And RoIPool moves each region's edges to whole cells of the map, by as much as "
            "half a cell: too coarse to say which pixels are the object's.",
        ),
        Chapter(
            "mask-rcnn",
            "He et al. 2017, Mask R-CNN",
            "A third head, a few convolutions, draws a small mask inside each box that was found. RoIAlign reads the "
            "feature map between its cells, so that the mask lies where the object lies.",
            "Masks for a little more time; nothing is rounded; every class has a mask of its own, so that classes do "
            "not compete for pixels.",
            "What it finds is still bounded by its proposals and by non-maximum suppression: of two objects whose "
            "boxes nearly coincide one may be lost.",
        ),
    )
}


def chapter_of(key: str) -> Chapter | None:
    """The chapter of a system, or of the one that it trains in another way: faster-rcnn-alternating is faster-rcnn."""
    longest = max((known for known in CHAPTERS if key == known or key.startswith(known + "-")), key=len, default=None)
    return None if longest is None else CHAPTERS[longest]
