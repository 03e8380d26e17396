collect_ignore = ["comfyui_graph.py"]  # a program that ComfyUI runs
