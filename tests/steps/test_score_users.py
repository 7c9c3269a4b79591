"""Scores of users for all titles."""

import torch

from tests.steps.cases import BLOCKS, NUM_TITLES, TITLE_WIDTH, USER_WIDTH, make_model
from tests.steps.reference import group_part

GROUPS = torch.tensor([2, 0, 2, 1, 0])


def make_features() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    users = torch.randn(len(GROUPS), USER_WIDTH, generator=generator, dtype=torch.float64)
    return users, torch.randn(NUM_TITLES, TITLE_WIDTH, generator=generator, dtype=torch.float64)


def test_users_pass_through_the_part_of_their_group():
    users, titles = make_features()
    for block in BLOCKS:
        model = make_model(group_block=block)
        scores = model.logits(model.user_vectors(users, GROUPS), model.title_vectors(titles))
        assert scores.shape == (len(GROUPS), NUM_TITLES)
        for row, group in enumerate(GROUPS.tolist()):
            vector = model.user_tower(users[row : row + 1])
            if block != "none":
                vector = group_part(model, vector, group)
            expected = model.logits(vector, model.title_vectors(titles))
            torch.testing.assert_close(scores[row : row + 1], expected, rtol=1e-10, atol=1e-12)


def test_chunks_and_order_do_not_matter():
    users, titles = make_features()
    model = make_model(group_block="dense")
    vectors = model.title_vectors(titles)
    whole = model.logits(model.user_vectors(users, GROUPS), vectors)
    parts = [model.logits(model.user_vectors(users[rows], GROUPS[rows]), vectors) for rows in ([4, 1], [3], [])]
    torch.testing.assert_close(torch.cat(parts), whole[[4, 1, 3]], rtol=1e-12, atol=1e-14)
