"""Turn the GGUF file of SmolLM2-135M-Instruct into an ordinary policy directory, and check it; see get_smollm2.sh."""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

SENTENCE = "The capital of France is Paris, and the capital of Italy is Rome."
MIN_LOGPROB = -3.0
"Nats per token of the sentence. Measured: -1.69; weights that went wrong are near -ln 49152 = -10.8."


def main(gguf: Path, out: Path) -> None:
    """Dequantise, check and write."""
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = quantised.config
    del config.quantization_config  # a model that was quantised cannot be saved
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    check(model.eval(), tokenizer)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


@torch.no_grad()
def check(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Ask for the log-probs of a sentence, and for the parts that a policy needs.

    Raises:
        SystemExit: the conversion went wrong.
    """
    ids_L = torch.tensor(tokenizer(SENTENCE, add_special_tokens=False)["input_ids"])
    logprobs_LV = model(input_ids=ids_L[None]).logits[0, :-1].log_softmax(-1)
    mean = float(logprobs_LV.gather(1, ids_L[1:, None]).mean())
    print(f"log-prob of a plain sentence: {mean:.2f} nats per token")
    if not mean > MIN_LOGPROB:
        raise SystemExit(f"the converted model gives a plain sentence {mean:.2f} nats per token")
    if not tokenizer.chat_template or tokenizer.eos_token != "<|im_end|>":
        raise SystemExit(f"the tokenizer has no chat template, or the stop token {tokenizer.eos_token}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
