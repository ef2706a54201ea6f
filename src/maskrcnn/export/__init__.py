"""The detector as one file for other runtimes (ONNX, OpenVINO, torch.export, AOTInductor), and what runs it."""
