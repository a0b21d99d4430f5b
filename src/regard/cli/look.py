"""Commands that look into a backbone: attention, features, embed."""

from pathlib import Path

from regard.settings import AttentionPictures, Device, EmbeddingPicture, FeaturePictures, Model


def attention(
    images: list[str], model: Model, pictures: AttentionPictures, device: Device, out: str = "runs/attention"
) -> str:
    """Draw what each attention head looks at: one mosaic per image, blocks down and heads across.

    Args:
        images: Files, folders of images at any depth, or video files, of which every frame is drawn.
        out: Folder for the pictures.
    """
    from regard.cli.common import opened
    from regard.pictures.attention import draw_attention

    return draw_attention(lambda: opened(model, device), images, pictures, Path(out))


def features(
    images: list[str], model: Model, pictures: FeaturePictures, device: Device, out: str = "runs/features"
) -> str:
    """Draw features: their channels, patches in the colours of principal components, or the effective receptive field.

    Args:
        images: Files, folders of images at any depth, or video files, of which every frame is taken.
        out: Folder for the pictures.
    """
    from regard.cli.common import opened
    from regard.pictures.feature_pictures import draw_features

    return draw_features(opened(model, device), images, pictures, Path(out))


def embed(data: str, model: Model, picture: EmbeddingPicture, device: Device, out: str = "runs/embedding") -> str:
    """Draw a map of a data set: its images in the plane by their pooled features, coloured by class.

    Args:
        data: `scenes`, a path or a pack's URL; classes are those of class folders, or of most pixels of a mask, not
            counting void and, where there is something else, `background`.
        out: Folder for embedding.html, which shows the image under the pointer, embedding.png and embedding.csv.
    """
    from regard.cli.common import opened
    from regard.pictures.embedding import draw_embedding

    return draw_embedding(lambda: opened(model, device), data, picture, Path(out))
