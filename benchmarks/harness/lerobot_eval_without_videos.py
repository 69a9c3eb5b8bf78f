"""``lerobot-eval`` as it is, except that it records no videos: it has no flag for that, and would film ten episodes.

LIBERO's assets and its configuration are found where this project finds them, offline and without a question.
"""

from __future__ import annotations

from typing import Any

from async_delta_inference.client.environments.libero_setup import prepare_libero

# Its simulators in processes of their own import this file, too.
prepare_libero()

if __name__ == "__main__":
    from lerobot.scripts import lerobot_eval

    evaluate_all = lerobot_eval.eval_policy_all

    def _without_videos(**arguments: Any) -> Any:
        return evaluate_all(**{**arguments, "max_episodes_rendered": 0, "videos_dir": None})

    lerobot_eval.eval_policy_all = _without_videos
    lerobot_eval.main()
