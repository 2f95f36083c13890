"""What compare_models.py, visualize_votes.py and explore.py do: draw models' maps of chosen images."""

import argparse
import math

import map_figures as figures
import torch
from figure_style import save_figure
from foreground_images import patch_foreground, to_pixels
from measured_models import check_image_flags, each_model, image_set_name, open_images, vote_selections
from patch_pca import fit_patch_pca
from vote_statistics import LEVELS, vote_levels

from last_vit.data.image_files import load_photos
from last_vit.evaluation import eval_transform
from last_vit.models import naming, parse_model_arguments
from last_vit.pooling import resolve_top_k
from last_vit.results import result_name
from last_vit.runtime import select_device


def compare(args: argparse.Namespace) -> None:
    """The command compare_models.py."""
    check_image_flags(args)
    device, arguments = select_device(args.device), parse_model_arguments(args.model)
    images = open_images(args)
    if args.imagenet_root is not None:
        images.keep_single_objects()
    chosen = figures.choose_images(len(images), args.num_images, args.seed, "--num-images")
    if args.only:
        chosen = [figures.find_image(images, name) for name in args.only]
    models = [argument.load(args.image_size, args.resize) for argument in arguments]
    views = []
    for argument, trained, selection in zip(arguments, models, vote_selections(models), strict=True):
        images.transform = eval_transform(trained.preprocessing)
        examples = figures.read_images(images, chosen, trained.preprocessing)
        maps = figures.read_examples(trained.model.to(device), examples, selection, device)
        views.append(figures.ModelMaps(argument.name, examples, score_columns(maps, examples, selection.top_k)))
    figure = figures.draw_maps(views)
    figures.add_key(figure)
    save_figure(figure, args.figure)
    print(f"{len(chosen)} of {len(images)} images of {image_set_name(args)}")


def score_columns(maps: figures.PatchMaps, examples: figures.ExampleImages, top_k: int | float) -> list[figures.Column]:
    """Scores and votes of a K; below the last image what is found of the objects of all, where they are known."""
    is_foreground, is_known = patch_foreground(examples.foregrounds, maps.grid_hw)
    best = on_objects = ""
    if is_foreground.any():
        _, found = figures.best_patches(maps, examples.foregrounds)
        best = f"on an object: {int((found == 1).sum())} of {int((found != 255).sum())}"
        inside, known = (float((maps.votes * mask).sum()) for mask in (is_foreground, is_known))
        area = 100 * float(is_foreground.sum() / is_known.sum())
        on_objects = f"{100 * inside / known:.0f} % on objects,\n{area:.0f} % of the patches"
    others, num_patches = [""] * (len(maps.votes) - 1), maps.votes.shape[1]
    votes = figures.Column(
        f"votes, K = {resolve_top_k(min(top_k, num_patches), num_patches)} of {num_patches}",
        maps.votes.unflatten(1, maps.grid_hw),
        [*others, on_objects],
        lowest=0,
        draw_on=lambda axes, image: figures.draw_outline(axes, examples.foregrounds[image]),
    )
    return [figures.score_column(maps, examples, [*others, best]), votes]


def show_votes(args: argparse.Namespace) -> None:
    """The command visualize_votes.py."""
    device, images, views = select_device(args.device), open_images(args), []
    chosen = figures.choose_images(len(images), args.num_images, args.seed, "--num-images")
    for argument, trained in each_model(args, device, images):
        examples, pool = figures.read_images(images, chosen, trained.preprocessing), trained.selection()
        with naming(argument):
            maps = figures.read_examples(trained.model, examples, pool, device)
        own = "" if trained.pooling["pool"] == "last" else " (the model is not pooled with LaSt)"
        name = f"{argument.name}: votes, K = {pool.top_k}{own}"
        views.append(figures.ModelMaps(name, examples, vote_columns(maps, examples)))
    save_figure(figures.draw_maps(views), args.figure)
    print(f"{len(chosen)} of the {len(images)} images of {image_set_name(args)}")


def vote_columns(maps: figures.PatchMaps, examples: figures.ExampleImages) -> list[figures.Column]:
    """The pictures' patches above each of `LEVELS`, and the votes; below, how much of them is object."""
    above = vote_levels(maps.votes)
    is_foreground, is_known = patch_foreground(examples.foregrounds, maps.grid_hw)
    columns = []
    for level, weights in zip((*LEVELS, None), (*above.unbind(dim=1), maps.votes), strict=True):
        known = weights * is_known
        shares = ((known * is_foreground).sum(dim=1).double() / known.sum(dim=1)).tolist()
        captions = ["" if math.isnan(share) else f"object {100 * share:.0f} %" for share in shares]
        patches = weights.unflatten(1, maps.grid_hw)
        if level is None:
            columns.append(figures.Column("votes", patches, captions, lowest=0))
            continue
        rims = to_pixels(patches, examples.pictures.shape[1:3])
        columns.append(
            figures.Column(
                f"> {100 * level:g} %",
                figures.among_dimmed(examples, patches, examples.pictures),
                captions,
                draw_on=lambda axes, image, rims=rims: figures.draw_rim(axes, rims[image], figures.HIT, 0.7),
            )
        )
    return columns


def explore(args: argparse.Namespace) -> None:
    """The command explore.py; what is wrong with a photo shows before a model is loaded."""
    arguments, device = parse_model_arguments(args.model), select_device(args.device)
    photos, views = load_photos(args.image), []
    for argument in arguments:
        trained = argument.load(args.image_size, args.resize)
        transform, side = eval_transform(trained.preprocessing), trained.preprocessing.crop
        unknown = torch.full((side, side), 255, dtype=torch.uint8)
        samples = [{"image": transform(photo), "foreground": unknown} for photo in photos.values()]
        examples, pool = figures.read_images(samples, range(len(samples)), trained.preprocessing), trained.selection()
        with naming(argument):
            maps = figures.read_examples(trained.model.to(device), examples, pool, device)
            views.append(figures.ModelMaps(argument.name, examples, all_columns(maps, examples, pool.top_k)))
    for index, name in enumerate(photos):
        save_figure(figures.draw_models(views, index, name), args.out / f"{result_name(name)}.png")


def all_columns(maps: figures.PatchMaps, examples: figures.ExampleImages, top_k: int | float) -> list[figures.Column]:
    """Scores, votes of a K, norms and principal components, with their ranges."""
    fits = [fit_patch_pca(tokens) for tokens in maps.tokens]
    colors = torch.stack([fit.rgb(tokens) for fit, tokens in zip(fits, maps.tokens, strict=True)])
    shares = [" + ".join(f"{100 * share:.0f}" for share in fit.explained) for fit in fits]
    votes, norms, colors = (values.unflatten(1, maps.grid_hw) for values in (maps.votes, maps.norms, colors))
    return [
        figures.score_column(maps, examples),
        figures.Column("votes", votes, [f"K = {top_k}, at most {row.max()}" for row in votes], lowest=0),
        figures.Column("norms", norms, [f"{row.min():.3g} to {row.max():.3g}" for row in norms]),
        figures.Column("principal components", colors, [f"{share} % of variance" for share in shares]),
    ]
