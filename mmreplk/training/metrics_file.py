"""The file of metrics that a test writes: one process writes it, not all at once."""

import os.path as osp

from mmengine.dist import is_main_process
from mmengine.fileio import dump
from mmengine.hooks import LoggerHook

from ..registry import HOOKS, register


@register(HOOKS)
class SafeLoggerHook(LoggerHook):
    """MMEngine's ``LoggerHook``, for tests on several processes.

    MMEngine's (0.10.7) has every process write ``<timestamp>/<timestamp>.json``, the same file.
    They measure different times, so the texts differ in length, and of the longer one an end can
    stay behind the shorter: then the file is no JSON. Arguments are those of ``LoggerHook``.
    """

    def after_test_epoch(self, runner, metrics: dict | None = None) -> None:
        """Log the metrics, and write them to the file in process 0.

        Args:
            runner (Runner): The runner.
            metrics (dict, optional): The results. Defaults to None.
        """
        tag, text = runner.log_processor.get_log_after_epoch(
            runner, len(runner.test_dataloader), 'test', with_non_scalar=True)
        runner.logger.info(text)
        if is_main_process():
            # Private, as all of MMEngine that makes JSON of tags. Tried with mmengine 0.10.7 and
            # onedl-mmengine 0.10.12.
            dump(self._process_tags(tag), osp.join(runner.log_dir, self.json_log_path))
