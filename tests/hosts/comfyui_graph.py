"""Runs inside ComfyUI: its loader, its executor and its patcher, our nodes, a small model.

Called by test_comfyui.py as a program: COMFYUI KIND WORK, with WORK/models filled. Everything but
the sizes is the host's own. Writes WORK/result.safetensors (the patched weights and the erasure's
factors) and WORK/result.json.
"""

import asyncio
import json
import sys
from pathlib import Path

HOST, KIND, WORK = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
sys.path.insert(0, str(HOST))
sys.argv = ["main.py", "--cpu", "--base-directory", str(WORK)]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management  # noqa: E402
import comfy.sd1_clip  # noqa: E402
import comfy.sdxl_clip  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.supported_models_base  # noqa: E402
import execution  # noqa: E402
import nodes  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

ABOUT = json.loads((WORK / "about.json").read_text())


def small_clip(base, name, **fixed):
    """A text encoder class of the host with our sizes in place of the published ones."""
    config = ABOUT["text"][name]
    special = {"start": config["bos_token_id"], "end": config["eos_token_id"]}
    special["pad"] = config["eos_token_id"] if name == "clip_l" else 0

    class Small(base):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            comfy.sd1_clip.SDClipModel.__init__(
                self, device=device, dtype=dtype, textmodel_json_config=dict(config),
                special_tokens=special, model_options=model_options or {}, **fixed,
            )  # fmt: skip

    return Small


def small_tokenizer(name, **fixed):
    class Small(comfy.sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data=None):
            super().__init__(
                str(HOST / "comfy" / "sd1_tokenizer"), embedding_directory=embedding_directory,
                embedding_size=ABOUT["text"][name]["hidden_size"], embedding_key=name, **fixed,
            )  # fmt: skip

    return Small


class SmallSD1(comfy.supported_models.SD15):
    unet_config = {**comfy.supported_models.SD15.unet_config, **ABOUT["unet"]}
    unet_extra_config = {"num_heads": 2, "num_head_channels": -1}

    def clip_target(self, state_dict=None):
        clip = small_clip(comfy.sd1_clip.SDClipModel, "clip_l", return_projected_pooled=False)

        class Tokenizer(comfy.sd1_clip.SD1Tokenizer):
            def __init__(self, embedding_directory=None, tokenizer_data=None):
                super().__init__(
                    embedding_directory, tokenizer_data or {}, tokenizer=small_tokenizer("clip_l")
                )

        class Model(comfy.sd1_clip.SD1ClipModel):
            def __init__(self, device="cpu", dtype=None, model_options=None):
                super().__init__(device, dtype, model_options or {}, clip_model=clip)

        return comfy.supported_models_base.ClipTarget(Tokenizer, Model)


class SmallSDXL(comfy.supported_models.SDXL):
    unet_config = {**comfy.supported_models.SDXL.unet_config, **ABOUT["unet"]}

    def clip_target(self, state_dict=None):
        hidden = {"layer": "hidden", "layer_idx": -2, "layer_norm_hidden_state": False}
        large = small_clip(comfy.sd1_clip.SDClipModel, "clip_l", **hidden)
        bigger = small_clip(comfy.sdxl_clip.SDXLClipG, "clip_g", **hidden)

        class Tokenizer(comfy.sdxl_clip.SDXLTokenizer):
            def __init__(self, embedding_directory=None, tokenizer_data=None):
                self.clip_l = small_tokenizer("clip_l")(embedding_directory)
                self.clip_g = small_tokenizer("clip_g", pad_with_end=False)(embedding_directory)

        class Model(comfy.sdxl_clip.SDXLClipModel):
            def __init__(self, device="cpu", dtype=None, model_options=None):
                comfy.sd1_clip.torch.nn.Module.__init__(self)
                self.clip_l = large(device=device, dtype=dtype, model_options=model_options)
                self.clip_g = bigger(device=device, dtype=dtype, model_options=model_options)
                self.dtypes = {dtype}

        return comfy.supported_models_base.ClipTarget(Tokenizer, Model)


class Keep:
    """A sink, so that the test sees what the graph made."""

    seen: dict = {}
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "keep", True, "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "erasure": ("ERASURE",), "report": ("STRING",)}}

    def keep(self, **wired):
        Keep.seen.update(wired)
        return ()


class Server:
    client_id = last_node_id = last_prompt_id = None

    def send_sync(self, *_):
        pass


def prompt_of(workflow):
    """A saved workflow as the front end queues it: links and widgets by name."""
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        kinds = nodes.NODE_CLASS_MAPPINGS[node["type"]].INPUT_TYPES()["required"]
        wired = {i["name"]: links[i["link"]] for i in node["inputs"]}
        values = [v for v in node["widgets_values"] if v != "fixed"]
        typed = dict(zip([n for n in kinds if n not in wired], values, strict=False))
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": typed | wired}
    return prompt


def main():
    comfy.supported_models.models.insert(0, {"sd1": SmallSD1, "sdxl": SmallSDXL}[KIND])
    asyncio.run(nodes.init_external_custom_nodes())
    extra = HOST / "comfy_extras" / "nodes_preview_any.py"
    assert asyncio.run(nodes.load_custom_node(str(extra), module_parent="comfy_extras"))
    nodes.NODE_CLASS_MAPPINGS["Keep"] = Keep
    (own,) = (WORK / "custom_nodes").glob("*/example_workflows/*.json")
    prompt = prompt_of(json.loads(own.read_text()))
    # The picture's decoder has no small form, so that the graph ends at the latent.
    del prompt["8"], prompt["9"]
    prompt["1"]["inputs"]["ckpt_name"] = "small.safetensors"
    prompt["6"]["inputs"] |= {"width": 128, "height": 128}
    prompt["7"]["inputs"] |= {"steps": 2}
    prompt["11"] = {"class_type": "SaveLatent", "inputs": {"samples": ["7", 0]}}
    prompt["11"]["inputs"]["filename_prefix"] = "out"
    prompt["12"] = {"class_type": "EraseSDLoad", "inputs": {"file": "dog.safetensors"}}
    both = {"a": ["2", 0], "b": ["12", 0]}
    prompt["13"] = {"class_type": "EraseSDCombine", "inputs": both}
    prompt["3"]["inputs"]["erasure"] = ["13", 0]
    prompt["14"] = {"class_type": "EraseSDPreflight", "inputs": {"erasure": ["13", 0]}}
    prompt["14"]["inputs"]["clip"] = ["1", 1]
    kept = {"model": ["3", 0], "erasure": ["13", 0], "report": ["14", 0]}
    prompt["15"] = {"class_type": "Keep", "inputs": kept}
    valid = asyncio.run(execution.validate_prompt("test", prompt, None))
    assert valid[0], valid
    executor = execution.PromptExecutor(Server())
    executor.execute(prompt, "test", {}, valid[2])
    assert executor.success, executor.status_messages[-1]
    report(Keep.seen)


def report(seen):
    """Patched weights by the host's key, before and after; the erasure."""
    model = seen["model"]
    before = {k: e[0][0].clone() for k, e in model.get_key_patches("diffusion_model.").items()}
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    after = {k: before[k] for k in before} | {
        k: v.clone() for k, v in model.model.state_dict().items() if k in before
    }
    save_file({k: v.contiguous() for k, v in after.items()}, WORK / "result.safetensors")
    (WORK / "erasure.safetensors").write_bytes(seen["erasure"].to_bytes())
    told = {"patched": sorted(model.patches), "report": seen["report"]}
    (WORK / "result.json").write_text(json.dumps(told))


main()
