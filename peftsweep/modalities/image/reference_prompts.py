"""The reference benchmark's prompts for pictures beside its photos (huggingface/peft, method_comparison/image-gen), so
that figures can be laid side by side."""

DRIFT_PROMPTS = (
    "a photo of cat",
    "a color drawing of cat",
    "cat sitting in a bathtub",
    "cat looks into a mirror",
    "a photo of cat next to a tree",
    "the Mona Lisa but she looks angry",
    "a dog holding a sign that says hello world",
    "a photo of the Eiffel tower at night",
    "an astronaut riding a horse",
    "3d design concept of a chair that looks like an avocado",
)
SAMPLE_PROMPTS = (
    "a photo of sks cat",
    "a color drawing of sks cat",
    "sks cat at the beach",
    "a photo of sks dog",
    "a photo of an orange cat",
)
