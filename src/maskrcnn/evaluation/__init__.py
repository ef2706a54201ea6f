"""How good a detector is (AP and AR as COCO counts them, F1, confusions): any function from pictures to Detections."""
