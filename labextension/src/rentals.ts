/** The plugin that feeds the model: Jupyter's event stream for news, a request where news is missing. */

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { Poll } from '@lumino/polling';
import { RentalsApi } from './api';
import { Rentals } from './model';
import { IRentals, type IWireRental } from './tokens';

const RENTAL_SCHEMA = 'https://schema.jupyter-depin.org/rental/v1';

/** How often to look whether to ask; as often as JupyterLab asks for its kernels. */
const WATCH_MS = 10_000;

export const rentals: JupyterFrontEndPlugin<IRentals> = {
  id: '@jupyter-depin/lab:rentals',
  description: 'Knows how the rentals of this server’s kernels stand.',
  autoStart: true,
  provides: IRentals,
  activate: (app: JupyterFrontEnd): IRentals => {
    const model = new Rentals(new RentalsApi(app.serviceManager.serverSettings));
    app.serviceManager.events.stream.connect((_, event) => {
      if (event.schema_id === RENTAL_SCHEMA) {
        model.report(event as unknown as IWireRental);
      }
    });
    const watch = new Poll({
      name: '@jupyter-depin/lab:rentals',
      factory: async () => {
        if (model.isQuiet) {
          await model.refresh();
        }
      },
      frequency: { interval: WATCH_MS, backoff: true, max: 6 * WATCH_MS },
      standby: 'when-hidden'
    });
    // A laptop that slept, or a page that was in the background, has missed events.
    document.addEventListener('visibilitychange', () => {
      if (!document.hidden) {
        void watch.refresh();
      }
    });
    return model;
  }
};
