/** Stop and settle, as a command: asks first, and shows the receipt afterwards. */

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { Dialog, ICommandPalette, showDialog, showErrorMessage } from '@jupyterlab/apputils';
import { ITranslator, nullTranslator, type TranslationBundle } from '@jupyterlab/translation';
import { ApiError } from './api';
import { amount, finalAmount, reason, stateSentence } from './messages';
import { CommandIDs, ICurrentRental, type IRental, IRentals, TRANSLATION_DOMAIN } from './tokens';

async function confirmed(trans: TranslationBundle, rental: IRental): Promise<boolean> {
  const result = await showDialog({
    title: trans.__('Stop “%1” and settle?', rental.title),
    body: trans.__(
      'The kernel on the other machine ends and its variables are lost. So far it cost %1; what is left of your deposit comes back.',
      amount(trans, rental.spent, rental)
    ),
    buttons: [
      Dialog.cancelButton({ label: trans.__('Keep it running') }),
      Dialog.warnButton({ label: trans.__('Stop and settle') })
    ],
    defaultButton: 0
  });
  return result.button.accept;
}

async function showReceipt(trans: TranslationBundle, rental: IRental): Promise<void> {
  const paid = amount(trans, finalAmount(rental), rental);
  await showDialog({
    title: trans.__('Receipt'),
    body: [
      stateSentence(trans, rental),
      rental.receipt ? trans.__('You paid %1.', paid) : trans.__('It cost %1 and is not settled yet.', paid),
      rental.receipt?.refunded != null
        ? trans.__('%1 came back to your escrow.', amount(trans, rental.receipt.refunded, rental))
        : '',
      trans.__('Running a cell in this notebook rents again.')
    ]
      .filter(Boolean)
      .join(' '),
    buttons: [Dialog.okButton({ label: trans.__('Close') })]
  });
}

export const commands: JupyterFrontEndPlugin<void> = {
  id: '@jupyter-depin/lab:commands',
  description: 'Stops and settles the current rental.',
  autoStart: true,
  requires: [IRentals, ICurrentRental],
  optional: [ITranslator, ICommandPalette],
  activate: (
    app: JupyterFrontEnd,
    rentals: IRentals,
    current: ICurrentRental,
    translator: ITranslator | null,
    palette: ICommandPalette | null
  ): void => {
    const trans = (translator ?? nullTranslator).load(TRANSLATION_DOMAIN);
    const meant = (id: unknown): IRental | null => {
      const able = current.shown.filter(rental => rental.state !== 'ended' && rental.state !== 'ending');
      return able.find(rental => rental.id === id) ?? (id === undefined && able.length === 1 ? able[0] : null);
    };
    app.commands.addCommand(CommandIDs.stopAndSettle, {
      label: trans.__('Stop and Settle the Rented Kernel'),
      caption: trans.__('End the rental of the current notebook or console and pay what it cost'),
      isEnabled: args => meant(args.rental) !== null,
      execute: async args => {
        const rental = meant(args.rental);
        if (!rental || !(await confirmed(trans, rental))) {
          return;
        }
        try {
          await showReceipt(trans, await rentals.settle(rental.id));
        } catch (error) {
          const why = error instanceof ApiError ? error : null;
          await showErrorMessage(trans.__('Not settled'), reason(trans, why, String((error as Error).message)));
        }
      }
    });
    current.changed.connect(() => app.commands.notifyCommandChanged(CommandIDs.stopAndSettle));
    palette?.addItem({ command: CommandIDs.stopAndSettle, category: trans.__('Rented Kernels') });
  }
};
